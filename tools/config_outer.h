// The options of a conn that say what becomes of headers and lengths on the way through the tunnel.
#pragma once

#include <string>

#include "tools/config.h"

namespace espalier::tools {

// Each throws std::invalid_argument as the functions of config_values.h do.
void set_dscp(Conn& conn, const std::string& value);        // copy, no, 0–63
void set_encap_dscp(Conn& conn, const std::string& value);  // libreswan: yes is copy
void set_df(Conn& conn, const std::string& value);          // copy, set, clear
void set_nopmtudisc(Conn& conn, const std::string& value);  // libreswan: yes is df=clear
void set_flow_label(Conn& conn, const std::string& value);  // copy, auto
void set_tfc(Conn& conn, const std::string& value);         // no, yes (to the MTU), bytes
void set_mss_clamp(Conn& conn, const std::string& value);   // no, yes (to the path), bytes

}  // namespace espalier::tools
