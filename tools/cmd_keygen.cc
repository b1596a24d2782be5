#include <iostream>

#include "crypto/secret.h"
#include "tools/command.h"
#include "tools/keygen.h"

namespace espalier::tools {

namespace po = boost::program_options;

namespace {

constexpr Usage kUsage{
    "espalier keygen --left ADDRESS --right ADDRESS --out DIRECTORY [OPTIONS]",
    "Makes DIRECTORY/left and DIRECTORY/right: a configuration, fresh random keys and a state\n"
    "file for each gateway. Copy each folder to its gateway over a channel that you trust, and\n"
    "keep no second copy: two daemons with the same keys would spoil both.",
    "espalier keygen --conn routed-vpn --left 192.1.2.23 --right 192.1.2.45 \\\n"
    "    --leftsubnet 0.0.0.0/0 --rightsubnet 0.0.0.0/0 --mark 5/0xffffffff \\\n"
    "    --vti-interface vti01 --vti-routing no --leftvti 10.0.1.1/24 --rightvti 10.0.1.2/24 \\\n"
    "    --out keys"};

void take(const po::variables_map& values, const char* name, std::optional<std::string>& to) {
  if (const auto found = values.find(name); found != values.end())
    to = found->second.as<std::string>();
}

}  // namespace

int run_keygen(const std::vector<std::string>& words) {
  KeygenRequest request;
  const auto text = [] { return po::value<std::string>(); };
  po::options_description options("options (the words and values of the configuration file)");
  options.add_options()("conn", po::value(&request.conn)->default_value("tunnel"), "its name")(
      "left", po::value(&request.left)->required(), "address of one gateway")(
      "right", po::value(&request.right)->required(), "address of the other")(
      "out", po::value<std::string>()->required(), "where left/ and right/ are made")(
      "leftsubnet", text(), "networks behind left, with commas between")(
      "rightsubnet", text(), "networks behind right")("mark", text(), "VALUE/MASK of the device")(
      "vti-interface", text(), "name of the device")("vti-routing", text(),
                                                     "yes or no: routes to the other's subnets")(
      "leftvti", text(), "address/length on left's device")(
      "rightvti", text(), "address/length on right's device")("encapsulation", text(),
                                                              "yes: ESP in UDP; no: raw ESP")(
      "leftaddresspool", text(), "inner addresses of clients, when left is %any")(
      "rightaddresspool", text(), "the same, when right is %any")(
      "clients", po::value(&request.clients), "how many clients: a folder for each")(
      "esp", po::value(&request.esp)->default_value(request.esp), "the suite");
  const auto values = parse_words(words, kUsage, options);
  if (!values) return kDone;
  request.out = (*values)["out"].as<std::string>();
  take(*values, "leftsubnet", request.leftsubnet);
  take(*values, "rightsubnet", request.rightsubnet);
  take(*values, "mark", request.mark);
  take(*values, "vti-interface", request.vti_interface);
  take(*values, "vti-routing", request.vti_routing);
  take(*values, "leftvti", request.leftvti);
  take(*values, "rightvti", request.rightvti);
  take(*values, "encapsulation", request.encapsulation);
  take(*values, "leftaddresspool", request.leftaddresspool);
  take(*values, "rightaddresspool", request.rightaddresspool);

  crypto::initialise();
  for (const auto& file : keygen(request)) std::cout << file.string() << "\n";
  return kDone;
}

}  // namespace espalier::tools
