#include "tools/config_hints.h"

#include <algorithm>
#include <array>

#include "tools/config_text.h"

namespace espalier::tools {
namespace {

// Names that IKE alone uses: authentication, proposals, life times, peer detection.
constexpr std::array<std::string_view, 61> kIkeOptions = {
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
    "aggressive",
    "aggrmode",
    "fragmentation",
    "leftusername",
    "rightusername",
    "esp-hw-offload",
    "initial-contact",
    "narrowing",
    "mobike",
    "uniqueids",
    "connaddrfamily",
    "negotiationshunt",
    "failureshunt",
    "leftmodecfgclient",
    "rightmodecfgclient",
    "leftxauthclient",
    "rightxauthserver",
    "modecfgpull",
    "xauthby",
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
    {"also", "remove the line, and write the options in each [conn NAME]"},
    {"include", "write everything in one file"},
    {"ipsec-offload", "remove the line: no network card takes part"},
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
           " is an option of IKE and belongs to a conn; write [conn NAME] above it";
  if (has(kSetupOptions, name))
    return std::string(name) + " is an option of an IKE daemon's 'config setup'; remove the line";
  return std::nullopt;
}

bool is_ike_option(std::string_view name) {
  return has(kIkeOptions, name);
}
bool is_setup_option(std::string_view name) {
  return has(kSetupOptions, name);
}

std::optional<std::string> hint_for_line(std::string_view line) {
  const auto space = line.find_first_of(" \t");
  const std::string_view word = line.substr(0, space);
  if (word == "include") return "files cannot be included; write everything in one file";
  return std::nullopt;
}

}  // namespace espalier::tools
