#include <iostream>

#include "tools/command.h"
#include "tools/control_client.h"
#include "tools/op_text.h"
#include "tools/op_words.h"

namespace espalier::tools {
namespace {

constexpr Usage kUsage{
    "espalier explain src ADDR dst ADDR [WORD VALUE]... [--json] [--control PATH]",
    "What would happen to a packet: its device, policy, SA and outer packet, or why it would be\n"
    "dropped. Nothing is sent.\n"
    "  proto PROTO  sport PORT  dport PORT  type N  code N (of ICMP)\n"
    "  length BYTES of the IP packet   df yes|no\n"
    "  dev NAME     as if it were routed there; else the kernel's routes are asked",
    "espalier explain src 10.1.3.2 dst 10.1.4.2 proto tcp dport 443 length 1500"};

}  // namespace

int run_explain(const std::vector<std::string>& all) {
  const auto parsed = parse_free_words(all, kUsage, daemon_options(Prints::data));
  if (!parsed) return kDone;
  const nlohmann::json op = explain_operation(parsed->words);
  ControlConnection daemon(parsed->control());
  const nlohmann::json reply = daemon.ask(op);
  std::cout << (parsed->has("json") ? reply.dump() + "\n" : explain_text(reply));
  return kDone;
}

}  // namespace espalier::tools
