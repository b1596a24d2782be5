#include "tools/op_words.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>

#include "ifaces/unique_fd.h"
#include "tools/command.h"
#include "tools/config_text.h"
#include "tools/config_values.h"

namespace espalier::tools {
namespace {

using nlohmann::json;

// A word, its member, and what stands behind it.
enum class Takes : std::uint8_t { text, yes_no };
struct Word {
  std::string_view word;
  std::string_view member;
  Takes takes = Takes::text;
  std::string_view within{};  // the member that holds it
};

class Words {
 public:
  explicit Words(std::span<const std::string> words) : words_(words) {}

  [[nodiscard]] bool more() const noexcept { return at_ < words_.size(); }
  [[nodiscard]] std::string_view peek() const noexcept {
    return more() ? std::string_view(words_[at_]) : std::string_view();
  }
  const std::string& next() { return words_[at_++]; }
  // What must follow `word`.
  const std::string& value_of(std::string_view word) {
    if (!more()) throw UsageError("'" + std::string(word) + "' needs a value behind it");
    return next();
  }
  // Reads it if it is next.
  bool take(std::string_view word) {
    if (peek() != word) return false;
    ++at_;
    return true;
  }

 private:
  std::span<const std::string> words_;
  std::size_t at_ = 0;
};

void set(json& op, const Word& word, json value) {
  json& object = word.within.empty() ? op : op[std::string(word.within)];
  const std::string member(word.member);
  if (object.contains(member))
    throw UsageError("'" + std::string(word.word) + "' is there a second time");
  object[member] = std::move(value);
}

bool yes_no(std::string_view word, const std::string& value) {
  try {
    return parse_yes_no(value);
  } catch (const std::invalid_argument& e) {
    throw UsageError(std::string(word) + ": " + e.what());
  }
}

// A word of the table with its value. False: it is none of them.
bool read_plain(std::span<const Word> table, const std::string& word, Words& words, json& op) {
  const auto found =
      std::find_if(table.begin(), table.end(), [&](const Word& w) { return w.word == word; });
  if (found == table.end()) return false;
  const std::string& value = words.value_of(word);
  set(op, *found, found->takes == Takes::text ? json(value) : json(yes_no(word, value)));
  return true;
}

// mark VALUE[/MASK] or mark VALUE mask MASK, as ip has it.
void read_mark(Words& words, json& op) {
  std::string mark = words.value_of("mark");
  if (words.take("mask")) mark += "/" + words.value_of("mask");
  set(op, {"mark", "mark"}, mark);
}

[[noreturn]] void unknown(std::string_view word, std::string_view command,
                          std::span<const Word> table,
                          std::initializer_list<std::string_view> others) {
  std::vector<std::string_view> known(others);
  for (const Word& w : table) known.push_back(w.word);
  const std::string_view near = nearest(word, known);
  // What is long may be a key whose word is missing.
  constexpr std::size_t kShort = 16;
  throw UsageError("unknown word " +
                   (word.size() < kShort ? in_quotes(word)
                                         : "of " + std::to_string(word.size()) + " characters") +
                   (near.empty() ? "" : "; write '" + std::string(near) + "'") + "; espalier " +
                   std::string(command) + " --help lists them");
}

// The first word, as what comes behind the name of the object: add → sa-add.
std::string verb_of(Words& words, std::string_view command,
                    std::span<const std::array<std::string_view, 2>> verbs) {
  std::string known;
  for (const auto& [word, op] : verbs) {
    if (words.take(word)) return std::string(command) + "-" + std::string(op);
    if (word == op) known.append(known.empty() ? "" : ", ").append(word);
  }
  throw UsageError((words.more() ? in_quotes(words.peek()) + " is nothing that" : "say what") +
                   (words.more() ? " can be done; write one of " : " to do: ") + known);
}

// ------------------------------------------------------------------------------------------ SAs

constexpr std::array kSaWords = {
    Word{"src", "source"},
    Word{"dst", "destination"},
    Word{"sport", "source_port"},
    Word{"dport", "destination_port"},
    Word{"spi", "spi"},
    Word{"id", "id"},
    Word{"count", "count"},
    Word{"length", "length"},
    Word{"dir", "direction"},
    Word{"suite", "suite"},
    Word{"reqid", "reqid"},
    Word{"if_id", "if_id"},
    Word{"window", "window"},
    Word{"replay-window", "window"},
    Word{"seq", "seq"},
    Word{"seq-limit", "seq_limit"},
    Word{"esn", "esn", Takes::yes_no},
    Word{"follow-peer", "follow_peer", Takes::yes_no},
    Word{"outer-mark", "outer_mark"},
    Word{"output-mark", "outer_mark"},
    Word{"tfc", "tfc"},
    Word{"mss", "mss_clamp"},
    Word{"name", "name"},
    Word{"peer", "peer"},
    Word{"peer-port", "peer_port"},
    Word{"dscp", "dscp", Takes::text, "outer"},
    Word{"dscp-inwards", "dscp_inwards", Takes::yes_no, "outer"},
    Word{"ecn", "ecn", Takes::yes_no, "outer"},
    Word{"df", "df", Takes::text, "outer"},
    Word{"hop-limit", "hop_limit", Takes::text, "outer"},
    Word{"copy-flow-label", "copy_flow_label", Takes::yes_no, "outer"},
};
constexpr std::array<std::array<std::string_view, 2>, 8> kSaVerbs = {{{"add", "add"},
                                                                      {"dummy", "dummy"},
                                                                      {"update", "update"},
                                                                      {"delete", "delete"},
                                                                      {"del", "delete"},
                                                                      {"get", "get"},
                                                                      {"list", "list"},
                                                                      {"show", "list"}}};

// enc udp [SPORT DPORT] | enc esp; ip's encap espinudp SPORT DPORT OADDR.
void read_encapsulation(Words& words, json& op) {
  const std::string kind = words.value_of("enc");
  set(op, {"enc", "encapsulation"}, kind == "espinudp" ? "udp" : kind);
  const auto is_port = [&words] {
    const std::string_view next = words.peek();
    return !next.empty() && next.find_first_not_of("0123456789") == std::string_view::npos;
  };
  if (!is_port()) return;
  set(op, {"enc", "source_port"}, words.next());
  if (!is_port()) throw UsageError("enc udp: write two ports, of source and destination");
  set(op, {"enc", "destination_port"}, words.next());
  if (kind != "espinudp" || !words.more()) return;
  const std::string_view address = words.peek();  // of NAT-OA, which no tunnel needs
  if (address.find_first_of(".:") != std::string_view::npos) words.next();
}

// limit byte-soft N, as ip has it.
void read_limit(Words& words, json& op) {
  const std::string kind = words.value_of("limit");
  const std::string value = words.value_of(kind);
  constexpr std::array<std::array<std::string_view, 2>, 3> kKinds = {
      {{"byte-", "bytes"}, {"packet-", "packets"}, {"time-", "seconds"}}};
  for (const auto& [prefix, member] : kKinds) {
    const std::string_view which =
        std::string_view(kind).substr(std::min(kind.size(), prefix.size()));
    if (!kind.starts_with(prefix) || (which != "soft" && which != "hard")) continue;
    json& limit = op["lifetime"][std::string(member)];
    if (limit.contains(which)) throw UsageError("'" + kind + "' is there a second time");
    limit[std::string(which)] = value;
    return;
  }
  throw UsageError("limit " + in_quotes(kind) +
                   ": write byte-, packet- or time-, and soft or hard, as in limit byte-soft N");
}

void read_key(const std::string& text, WordSource source, std::vector<crypto::SecretBytes>& keys,
              json& op) {
  if (text == "-") {
    keys.push_back(read_key_text(text));
  } else if (source == WordSource::file) {
    keys.emplace_back(std::span(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()));
  } else {
    throw UsageError(
        "a key on the command line is seen by everybody who looks at the processes; write it to a "
        "file and say key-file FILE, or key - to read it from standard input");
  }
  set(op, {"key", "key"}, keys.size() - 1);
}

bool read_sa_special(const std::string& word, Words& words, WordSource source,
                     std::vector<crypto::SecretBytes>& keys, json& op) {
  const auto only = [&](std::string_view value) {
    const std::string& got = words.value_of(word);
    if (got != value)
      throw UsageError(word + " " + in_quotes(got) + ": Espalier has " + word + " " +
                       std::string(value) + " only");
  };
  if (word == "key") {
    read_key(words.value_of(word), source, keys, op);
  } else if (word == "key-file") {
    keys.push_back(read_key_text(words.value_of(word)));
    set(op, {"key-file", "key"}, keys.size() - 1);
  } else if (word == "aead" || word == "auth" || word == "auth-trunc" || word == "comp") {
    throw UsageError("'" + word +
                     "': write suite NAME key-file FILE; the file holds key and salt, as hex "
                     "digits or base64");
  } else if (word == "mark") {
    read_mark(words, op);
  } else if (word == "enc" || word == "encap") {
    read_encapsulation(words, op);
  } else if (word == "limit") {
    read_limit(words, op);
  } else if (word == "flag") {
    const std::string& flag = words.value_of(word);
    if (flag != "esn") throw UsageError("flag " + in_quotes(flag) + ": Espalier knows flag esn");
    set(op, {"flag", "esn"}, true);
  } else if (word == "proto") {
    only("esp");
  } else if (word == "mode") {
    only("tunnel");
  } else {
    return false;
  }
  return true;
}

// ------------------------------------------------------------------------------------- policies

constexpr std::array kPolicyWords = {
    Word{"src", "source"},
    Word{"dst", "destination"},
    Word{"proto", "protocol"},
    Word{"sport", "source_port"},
    Word{"dport", "destination_port"},
    Word{"type", "icmp_type"},
    Word{"code", "icmp_code"},
    Word{"priority", "priority"},
    Word{"reqid", "reqid"},
    Word{"if_id", "if_id"},
    Word{"trap", "trap", Takes::yes_no},
    Word{"name", "name"},
    Word{"id", "id"},
};
constexpr std::array<std::array<std::string_view, 2>, 5> kPolicyVerbs = {
    {{"add", "add"}, {"delete", "delete"}, {"del", "delete"}, {"list", "list"}, {"show", "list"}}};

// tmpl [src A] [dst B] [proto esp] [spi N] [mode tunnel] reqid N [level required]. Only the reqid
// chooses the SA, so what else there is must be what we would do anyway.
void read_template(Words& words, json& op) {
  while (words.more()) {
    const std::string word = words.next();
    const std::string& value = words.value_of(word);
    const bool the_sa_has_it = word == "src" || word == "dst";
    const bool as_we_do = (word == "proto" && value == "esp") ||
                          (word == "mode" && value == "tunnel") ||
                          (word == "level" && value == "required");
    if (word == "reqid")
      set(op, {"reqid", "reqid"}, value);
    else if (!the_sa_has_it && !as_we_do)
      throw UsageError("tmpl: " + in_quotes(std::string(word).append(" ").append(value)) +
                       " is not possible; write proto esp mode tunnel reqid N");
  }
  if (!op.contains("action")) op["action"] = "protect";
}

// ip's words: allow with a template protects, without one it lets pass; block drops.
std::string read_action(const std::string& action) {
  if (action == "block") return "discard";
  return action == "allow" ? "" : action;
}

void read_policy_direction(const std::string& direction, json& op) {
  if (direction == "fwd")
    throw UsageError("dir fwd: there is none; dir in is for what is forwarded, too");
  set(op, {"dir", "direction"}, direction);
}

// ---------------------------------------------------------------------------------------- devices

constexpr std::array kVtiWords = {
    Word{"name", "name"},
    Word{"local", "local"},
    Word{"remote", "remote"},
    Word{"key", "key"},
    Word{"ikey", "ikey"},
    Word{"okey", "okey"},
    Word{"if_id", "if_id"},
    Word{"mtu", "mtu"},
    Word{"carrier-follows-sa", "carrier_follows_sa", Takes::yes_no},
};
constexpr std::array<std::array<std::string_view, 2>, 5> kVtiVerbs = {
    {{"add", "add"}, {"delete", "delete"}, {"del", "delete"}, {"show", "list"}, {"list", "list"}}};

constexpr std::array kExplainWords = {
    Word{"src", "source"},
    Word{"dst", "destination"},
    Word{"proto", "protocol"},
    Word{"sport", "source_port"},
    Word{"dport", "destination_port"},
    Word{"type", "icmp_type"},
    Word{"code", "icmp_code"},
    Word{"length", "length"},
    Word{"df", "df", Takes::yes_no},
    Word{"dev", "device"},
};

}  // namespace

json sa_operation(std::span<const std::string> all, WordSource source,
                  std::vector<crypto::SecretBytes>& keys) {
  Words words(all);
  json op = {{"op", verb_of(words, "sa", kSaVerbs)}};
  while (words.more()) {
    const std::string word = words.next();
    if (read_plain(kSaWords, word, words, op)) continue;
    if (read_sa_special(word, words, source, keys, op)) continue;
    unknown(word, "sa", kSaWords, {"key", "key-file", "mark", "enc", "limit", "flag"});
  }
  return op;
}

json policy_operation(std::span<const std::string> all) {
  Words words(all);
  json op = {{"op", verb_of(words, "policy", kPolicyVerbs)}};
  bool allow = false;
  while (words.more()) {
    const std::string word = words.next();
    if (word == "mark") {
      read_mark(words, op);
    } else if (word == "dir") {
      read_policy_direction(words.value_of(word), op);
    } else if (word == "action") {
      const std::string action = read_action(words.value_of(word));
      allow = action.empty();
      if (!allow) set(op, {"action", "action"}, action);
    } else if (word == "tmpl") {
      read_template(words, op);
    } else if (!read_plain(kPolicyWords, word, words, op)) {
      unknown(word, "policy", kPolicyWords, {"mark", "dir", "action", "tmpl"});
    }
  }
  if (allow && !op.contains("action")) op["action"] = op.contains("reqid") ? "protect" : "bypass";
  return op;
}

json vti_operation(std::span<const std::string> all) {
  Words words(all);
  json op = {{"op", verb_of(words, "vti", kVtiVerbs)}};
  while (words.more()) {
    const std::string word = words.next();
    if (word == "mode") {
      const std::string& mode = words.value_of(word);
      if (mode != "vti" && mode != "vti6")
        throw UsageError("mode " + in_quotes(mode) + ": Espalier has mode vti only");
    } else if (word == "address") {
      op["addresses"].push_back(words.value_of(word));
    } else if (read_plain(kVtiWords, word, words, op)) {
      continue;
    } else if (!op.contains("name") && word.find_first_of("/:") == std::string::npos) {
      op["name"] = word;
    } else {
      unknown(word, "vti", kVtiWords, {"address", "mode"});
    }
  }
  return op;
}

json explain_operation(std::span<const std::string> all) {
  Words words(all);
  json op = {{"op", "explain"}};
  while (words.more()) {
    const std::string word = words.next();
    if (!read_plain(kExplainWords, word, words, op)) unknown(word, "explain", kExplainWords, {});
  }
  return op;
}

crypto::SecretBytes read_key_text(const std::string& file) {
  constexpr std::size_t kLongest = 1024;
  // No core file of this process, and nobody of the same user may look into it.
  ::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  const auto fail = [&file](const std::string& why) {
    throw std::runtime_error((file == "-" ? "standard input" : file) + ": " + why);
  };
  const ifaces::UniqueFd opened(file == "-" ? ::dup(STDIN_FILENO)
                                            : ::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!opened) fail(std::generic_category().message(errno));
  crypto::SecretBytes buffer(kLongest);
  std::size_t size = 0;
  for (;;) {
    const ssize_t got = ::read(opened.get(), buffer.bytes().data() + size, kLongest - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(std::generic_category().message(errno));
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
    if (size == kLongest) fail("is too long for a key; write its hex digits or base64, one line");
  }
  const auto text = std::as_const(buffer).bytes().first(size);
  const auto is_space = [](std::uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  const auto first = std::find_if_not(text.begin(), text.end(), is_space);
  const auto last = std::find_if_not(text.rbegin(), text.rend(), is_space).base();
  if (first == text.end()) fail("is empty; write the key and salt as hex digits or base64");
  const std::span<const std::uint8_t> trimmed(first, last);
  if (std::any_of(trimmed.begin(), trimmed.end(),
                  [](std::uint8_t c) { return c <= ' ' || c >= 0x7f || c == '"' || c == '\\'; }))
    fail("is no key; write its hex digits or base64, one line");
  return crypto::SecretBytes(trimmed);
}

}  // namespace espalier::tools
