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
    "espalier vti add|delete|show|flush [NAME] [WORDS] [-s] [--json] [--control PATH]",
    "Devices of the running daemon, in the words of ip tunnel. What leaves through one carries "
    "its\n"
    "okey as a mark; what comes in goes to the one whose ikey its policy's mark matches.\n"
    "  add     NAME [local ADDR] [remote ADDR] [key N | ikey N okey N] [if_id N] [mtu N]\n"
    "          [address ADDR/LEN]... [carrier-follows-sa yes|no]\n"
    "  delete  NAME\n"
    "  show    [NAME]\n"
    "  flush   all that came over the control socket",
    "espalier vti add vti01 local 192.0.2.1 remote 192.0.2.2 ikey 5 okey 5 address 10.0.1.1/24"};

void show(const json& vti, bool as_json, bool counters) {
  if (as_json)
    std::cout << vti.dump() << "\n";
  else
    std::cout << vti_line(vti) << (counters ? vti_counters(vti) : "");
}

// True: there was something to show.
bool show_all(const json& reply, const std::string& only, bool as_json, bool counters) {
  bool found = only.empty();
  const auto list = reply.find("vtis");
  if (list == reply.end() || !list->is_array()) return found;
  for (const json& vti : *list) {
    if (!vti.is_object() || (!only.empty() && text_of(vti, "name") != only)) continue;
    found = true;
    show(vti, as_json, counters);
  }
  return found;
}

}  // namespace

int run_vti(const std::vector<std::string>& all) {
  boost::program_options::options_description options = daemon_options(Prints::data);
  options.add_options()("statistics,s", "with counters");
  const auto parsed = parse_free_words(all, kUsage, options);
  if (!parsed) return kDone;
  json op = {{"op", "flush"}, {"what", "vti"}};
  if (parsed->words != std::vector<std::string>{"flush"}) op = vti_operation(parsed->words);
  ControlConnection daemon(parsed->control());
  if (op["op"] == "vti-list") {
    const std::string only = text_of(op, "name");
    if (op.size() > (only.empty() ? 1U : 2U)) throw UsageError("vti show takes a name only");
    if (!show_all(daemon.ask({{"op", "vti-list"}}), only, parsed->has("json"),
                  parsed->has("statistics")))
      throw std::runtime_error("there is no device " + only + "; vti show lists them");
    return kDone;
  }
  const json reply = daemon.ask(op);
  if (parsed->has("json")) std::cout << reply.dump() << "\n";
  return kDone;
}

}  // namespace espalier::tools
