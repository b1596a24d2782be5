#include <sys/prctl.h>

#include <fstream>
#include <iostream>
#include <sstream>

#include "tools/command.h"
#include "tools/control_client.h"
#include "tools/control_server.h"
#include "tools/json_text.h"
#include "tools/op_words.h"
#include "tools/request_keys.h"

namespace espalier::tools {
namespace {

using nlohmann::json;

constexpr Usage kUsage{
    "espalier batch FILE|- [--json] [--control PATH]",
    "Many operations as one: all of them happen, or none. A line is what stands behind espalier\n"
    "(sa add …, policy add …, vti add …), or an operation as JSON (tools/CONTROL.md). First what "
    "is\n"
    "added and updated, in order, then what is deleted. Here a key may stand in its line, so the\n"
    "file is as secret as they are.",
    "espalier batch rekey.batch"};

constexpr std::chrono::seconds kPatienceForBatch{120};
constexpr std::size_t kPart = ControlServer::kMaxRequest - std::size_t{64} * 1024;

// Words with white space between; quotes hold some together, # ends the line.
std::vector<std::string> split_words(const std::string& line) {
  std::vector<std::string> words;
  bool inside = false;
  char quote = 0;
  for (const char c : line) {
    const bool space = c == ' ' || c == '\t' || c == '\r';
    if (quote == 0 && c == '#' && !inside) break;
    if (quote == 0 && space) {
      inside = false;
      continue;
    }
    if (!inside) words.emplace_back();
    inside = true;
    if (quote == 0 && (c == '"' || c == '\''))
      quote = c;
    else if (c == quote)
      quote = 0;
    else
      words.back().push_back(c);
  }
  if (quote != 0) throw UsageError("a quote has no end");
  return words;
}

json operation_of(const std::vector<std::string>& words, std::vector<crypto::SecretBytes>& keys) {
  const std::span<const std::string> rest = std::span(words).subspan(1);
  if (words[0] == "sa") return sa_operation(rest, WordSource::file, keys);
  if (words[0] == "policy") return policy_operation(rest);
  if (words[0] == "vti") return vti_operation(rest);
  throw UsageError("a line is sa …, policy …, vti … or JSON");
}

// The operation of a line as text, with its key; empty: there is none.
SecretText render_line(std::string& line) {
  std::vector<crypto::SecretBytes> keys;
  const std::size_t first = line.find_first_not_of(" \t\r");
  if (first == std::string::npos || line[first] == '#') return {};
  if (line[first] == '{') {
    keys = take_keys(line);
    json op = json::parse(line, nullptr, false);
    if (!op.is_object()) throw UsageError("this is no JSON object");
    return render(std::move(op), keys);
  }
  const std::vector<std::string> words = split_words(line);
  if (words.empty()) return {};
  json op = operation_of(words, keys);
  return render(std::move(op), keys);
}

// Sends operations in parts, and knows of which line each is.
class BatchSender {
 public:
  BatchSender(ControlConnection& daemon, std::string file)
      : daemon_(daemon), file_(std::move(file)) {
    text_.reserve(ControlServer::kMaxRequest);
  }

  void add(const SecretText& operation, std::size_t line) {
    if (text_.size() + operation.size() > kPart) static_cast<void>(send(true));
    text_.append(text_.empty() ? kStart : ",").append(operation);
    lines_.push_back(line);
  }
  json finish() {
    if (text_.empty()) text_ = kStart;
    return send(false);
  }
  [[noreturn]] void refuse(std::size_t line, const std::string& why) const {
    throw std::runtime_error(file_ + ":" + std::to_string(line) + ": " + why +
                             "; nothing was changed");
  }

 private:
  static constexpr const char* kStart = R"({"version":1,"op":"batch","ops":[)";

  json send(bool more) {
    text_.append(more ? R"(],"more":true})" : "]}");
    try {
      json reply = daemon_.ask_line(text_, kPatienceForBatch);
      crypto::wipe({reinterpret_cast<std::uint8_t*>(text_.data()), text_.size()});
      text_.clear();
      return reply;
    } catch (const ControlRefused& e) {
      const std::uint64_t index = count_of(e.reply(), "index");
      if (!e.reply().contains("index") || index >= lines_.size()) throw;
      refuse(lines_[index], e.what());
    }
  }

  ControlConnection& daemon_;
  std::string file_;
  SecretText text_;
  std::vector<std::size_t> lines_;
};

json send_file(std::istream& in, const std::string& file, const std::string& control) {
  ::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);  // no core file with the keys
  ControlConnection daemon(control);
  BatchSender sender(daemon, file);
  std::string line;
  for (std::size_t number = 1; std::getline(in, line); ++number) {
    try {
      const SecretText operation = render_line(line);
      if (!operation.empty()) sender.add(operation, number);
    } catch (const UsageError& e) {
      sender.refuse(number, e.what());
    }
  }
  crypto::wipe({reinterpret_cast<std::uint8_t*>(line.data()), line.size()});
  return sender.finish();
}

}  // namespace

int run_batch(const std::vector<std::string>& all) {
  const auto parsed = parse_free_words(all, kUsage, daemon_options(Prints::data));
  if (!parsed) return kDone;
  if (parsed->words.size() != 1)
    throw UsageError("write batch FILE, or batch - for standard input");
  const std::string& file = parsed->words[0];
  std::ifstream opened;
  if (file != "-") {
    opened.open(file);
    if (!opened) throw std::runtime_error(file + ": cannot be opened");
  }
  const json reply = send_file(file == "-" ? std::cin : opened, file, parsed->control());
  if (parsed->has("json"))
    std::cout << reply.dump() << "\n";
  else
    std::cout << text_of(reply, "added") << " added, " << text_of(reply, "updated") << " updated, "
              << text_of(reply, "deleted") << " deleted\n";
  return kDone;
}

}  // namespace espalier::tools
