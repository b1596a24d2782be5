#include "tools/config_hints.h"

#include <algorithm>
#include <array>

#include "tools/config_text.h"

namespace espalier::tools {
namespace {

// Names that IKE alone uses: authentication, proposals, life times, peer detection.
constexpr std::array<std::string_view, 62> kIkeOptions = {
    "authby",
    "leftauth",
    "rightauth",
    "ike",
    "ikev2",
    "keyexchange",
    "leftid",
    "rightid",
    "leftcert",
    "rightcert",
    "leftca",
    "rightca",
    "leftckaid",
    "rightckaid",
    "leftrsasigkey",
    "rightrsasigkey",
    "leftpubkey",
    "rightpubkey",
    "leftsendcert",
    "rightsendcert",
    "rekey",
    "rekeymargin",
    "rekeyfuzz",
    "reauth",
    "ikelifetime",
    "salifetime",
    "keylife",
    "lifetime",
    "keyingtries",
    "retransmit-timeout",
    "retransmit-interval",
    "dpddelay",
    "dpdtimeout",
    "dpdaction",
    "pfs",
    "phase2",
    "aggressive",
    "aggrmode",
    "fragmentation",
    "initial-contact",
    "narrowing",
    "mobike",
    "uniqueids",
    "connaddrfamily",
    "negotiationshunt",
    "failureshunt",
    "sha2-truncbug",
    "leftmodecfgclient",
    "rightmodecfgclient",
    "leftxauthclient",
    "rightxauthserver",
    "modecfgpull",
    "xauthby",
    "rightaddresspool",
    "leftaddresspool",
    "secret",
    "proposals",
    "dpd_delay",
    "dpd_action",
    "close_action",
    "start_action",
    "version",
};

// Options of `config setup`, most of them about the IKE daemon's own running.
constexpr std::array<std::string_view, 15> kSetupOptions = {
    "protostack", "nat_traversal", "nat-traversal",    "virtual_private", "virtual-private",
    "oe",         "logfile",       "plutodebug",       "dumpdir",         "listen",
    "nhelpers",   "interfaces",    "crlcheckinterval", "strictcrlpolicy", "logtime",
};

struct Hint {
  std::string_view name;
  std::string_view text;
};

constexpr std::array<Hint, 24> kHints = {{
    {"leftsourceip", "write leftvti=ADDRESS/LEN with a vti-interface, or remove the line"},
    {"rightsourceip", "write rightvti=ADDRESS/LEN with a vti-interface, or remove the line"},
    {"ipsec-interface", "write vti-interface=NAME and mark=NUMBER"},
    {"interface-ip", "write leftvti=ADDRESS/LEN"},
    {"if_id_in", "write mark-in=NUMBER"},
    {"if_id_out", "write mark-out=NUMBER"},
    {"mark_in", "write mark-in=NUMBER"},
    {"mark_out", "write mark-out=NUMBER"},
    {"local_addrs", "write left=ADDRESS"},
    {"remote_addrs", "write right=ADDRESS"},
    {"local_ts", "write leftsubnet=PREFIX"},
    {"remote_ts", "write rightsubnet=PREFIX"},
    {"esp_proposals", "write esp=aes_gcm256"},
    {"forceencaps", "write encapsulation=yes"},
    {"nat-keepalive", "write keepalive=SECONDS above the first [conn NAME]"},
    {"keep-alive", "write keepalive=SECONDS above the first [conn NAME]"},
    {"replay_window", "write replay-window=BITS"},
    {"leftupdown", "remove the line: the daemon makes devices and routes itself"},
    {"rightupdown", "remove the line: the daemon makes devices and routes itself"},
    {"leftnexthop", "remove the line: the routes of this host decide"},
    {"rightnexthop", "remove the line: the routes of this host decide"},
    {"compress", "remove the line: packets are not compressed"},
    {"also", "remove the line, and write the options in each [conn NAME]"},
    {"include", "write everything in one file"},
}};

template <std::size_t N>
bool has(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

std::optional<std::string> hint_for_option(std::string_view name) {
  const auto* hint =
      std::find_if(kHints.begin(), kHints.end(), [name](const Hint& h) { return h.name == name; });
  if (hint != kHints.end())
    return "there is no option " + in_quotes(name) + "; " + std::string(hint->text);
  if (has(kIkeOptions, name))
    return std::string(name) +
           " is an option of IKE, and static keys have no IKE; remove the line (the keys come from "
           "keys=FILE)";
  if (has(kSetupOptions, name))
    return std::string(name) + " is an option of an IKE daemon's 'config setup'; remove the line";
  return std::nullopt;
}

std::optional<std::string> hint_for_line(std::string_view line) {
  const auto space = line.find_first_of(" \t");
  const std::string_view word = line.substr(0, space);
  if (word == "conn") {
    const auto name = space == std::string_view::npos ? std::string_view::npos
                                                      : line.find_first_not_of(" \t", space);
    return in_quotes(line) + " is no section; write [conn " +
           (name == std::string_view::npos ? "NAME" : std::string(line.substr(name))) + "]";
  }
  if (word == "config")
    return "there is no 'config setup'; remove the line (global options stand above the first "
           "[conn NAME])";
  if (word == "include") return "files cannot be included; write everything in one file";
  if (word == "version") return "there is no 'version' line; remove it";
  return std::nullopt;
}

}  // namespace espalier::tools
