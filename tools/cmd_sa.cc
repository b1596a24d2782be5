#include <iostream>

#include "tools/command.h"
#include "tools/control_client.h"
#include "tools/json_text.h"
#include "tools/op_text.h"
#include "tools/op_words.h"

namespace espalier::tools {
namespace {

using nlohmann::json;

constexpr Usage kUsage{
    "espalier sa add|update|delete|get|list|count|dummy|flush [WORDS] [--json] [--control PATH]",
    "SAs of the running daemon, in the words of ip xfrm state. Keys are read from a file or from\n"
    "standard input, and never shown.\n"
    "  add     src ADDR dst ADDR spi N suite NAME key-file FILE|key - [dir in|out] [reqid N]\n"
    "          [enc udp SPORT DPORT|enc esp] [window N] [esn yes|no] [seq N] [mark V[/MASK]]\n"
    "          [if_id N] [limit byte-|packet-|time- with soft|hard N] [outer-mark N] [dscp "
    "copy|no|N]\n"
    "          [df copy|set|clear] [ecn yes|no] [hop-limit N] [tfc N|mtu] [mss N|path]\n"
    "          [follow-peer yes|no] [name TEXT]\n"
    "  update  id N | spi N dst ADDR; then peer ADDR, peer-port N, window N, limit …, seq-limit N\n"
    "  delete, get   id N | spi N dst ADDR [dir in|out]\n"
    "  dummy   id N | spi N dst ADDR; then count N, length N: packets that the peer forgets\n"
    "  flush   all that came over the control socket",
    "espalier sa add src 192.0.2.1 dst 192.0.2.2 spi 0x1234 enc udp 4500 4500 \\\n"
    "    suite aes_gcm256 key-file out.key reqid 1"};

void list(ControlConnection& daemon, bool as_json) {
  ask_pages(daemon, "sa-list", "sas", [as_json](const json& sa) {
    std::cout << (as_json ? sa.dump() + "\n" : sa_lines(sa));
  });
}

}  // namespace

int run_sa(const std::vector<std::string>& all) {
  const auto parsed = parse_free_words(all, kUsage, daemon_options(Prints::data));
  if (!parsed) return kDone;
  const bool as_json = parsed->has("json");
  const std::string verb = parsed->words.empty() ? "" : parsed->words.front();
  if ((verb == "flush" || verb == "count") && parsed->words.size() == 1) {
    ControlConnection daemon(parsed->control());
    const json reply = verb == "flush" ? daemon.ask({{"op", "flush"}, {"what", "sa"}})
                                       : daemon.ask({{"op", "sa-count"}});
    if (as_json)
      std::cout << reply.dump() << "\n";
    else if (verb == "count")
      std::cout << text_of(reply, "count") << "\n";
    return kDone;
  }
  std::vector<crypto::SecretBytes> keys;
  const json op = sa_operation(parsed->words, WordSource::command_line, keys);
  ControlConnection daemon(parsed->control());
  if (op["op"] == "sa-list") {
    if (op.size() > 1) throw UsageError("sa list takes no words; sa get shows one SA");
    list(daemon, as_json);
    return kDone;
  }
  const json reply = daemon.ask(op, keys);
  if (as_json)
    std::cout << (reply.contains("sa") ? reply["sa"] : reply).dump() << "\n";
  else if (reply.contains("sa"))
    std::cout << sa_lines(reply["sa"]);
  return kDone;
}

}  // namespace espalier::tools
