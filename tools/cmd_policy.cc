#include <iostream>

#include "tools/command.h"
#include "tools/control_client.h"
#include "tools/op_text.h"
#include "tools/op_words.h"

namespace espalier::tools {
namespace {

using nlohmann::json;

constexpr Usage kUsage{
    "espalier policy add|delete|list|flush [WORDS] [--json] [--control PATH]",
    "Policies of the running daemon, in the words of ip xfrm policy. The lowest priority wins.\n"
    "  add     dir in|out src PREFIX|FIRST-LAST dst PREFIX|FIRST-LAST [proto NAME|N]\n"
    "          [sport N|N-M] [dport N|N-M] [type N] [code N] [mark V[/MASK]] [priority N]\n"
    "          [action protect|bypass|discard] [reqid N|tmpl … reqid N] [if_id N] [trap yes]\n"
    "          [name TEXT]\n"
    "  delete  id N\n"
    "  flush   all that came over the control socket",
    "espalier policy add dir out src 10.1.3.0/24 dst 10.1.4.0/24 mark 5 reqid 1"};

}  // namespace

int run_policy(const std::vector<std::string>& all) {
  const auto parsed = parse_free_words(all, kUsage, daemon_options(Prints::data));
  if (!parsed) return kDone;
  const bool as_json = parsed->has("json");
  json op = {{"op", "flush"}, {"what", "policy"}};
  if (parsed->words != std::vector<std::string>{"flush"}) op = policy_operation(parsed->words);
  ControlConnection daemon(parsed->control());
  if (op["op"] == "policy-list") {
    if (op.size() > 1) throw UsageError("policy list takes no words");
    ask_pages(daemon, "policy-list", "policies", [as_json](const json& policy) {
      std::cout << (as_json ? policy.dump() + "\n" : policy_lines(policy));
    });
    return kDone;
  }
  const json reply = daemon.ask(op);
  if (as_json) std::cout << reply.dump() << "\n";
  return kDone;
}

}  // namespace espalier::tools
