// The client's side of the control socket: words of `espalier sa|policy|vti` and of a batch file
// become operations, which the daemon's parsers then take or refuse in one line; and what a daemon
// answers, any JSON, is shown to people.
//
//   input: what it is (1: SA, policy, device, reply), bytes
#include <cctype>
#include <string>
#include <vector>

#include "crypto/registry.h"
#include "tests/fuzz/input.h"
#include "tools/command.h"
#include "tools/control_json.h"
#include "tools/op_text.h"
#include "tools/op_words.h"
#include "tools/status.h"

namespace {

using namespace espalier;
using namespace espalier::tools;
using espalier::fuzz::Input;
using espalier::fuzz::require;
using nlohmann::json;

std::vector<std::string> words_of(std::span<const std::uint8_t> bytes) {
  std::vector<std::string> words(1);
  for (const std::uint8_t c : bytes) {
    if (std::isspace(c) == 0)
      words.back().push_back(static_cast<char>(c));
    else if (!words.back().empty())
      words.emplace_back();
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

// It would read a file of this host, or wait for standard input.
bool reads_a_file(const std::vector<std::string>& words) {
  for (const std::string& word : words)
    if (word == "key-file" || word == "-") return true;
  return false;
}

void check_refusal(const std::exception& e) {
  const std::string_view text = e.what();
  require(!text.empty(), "a refusal without a word");
  for (const char c : text) require(c != '\n', "a refusal of several lines");
}

// As the daemon does with an operation that has arrived.
void parse(json op, std::span<const crypto::SecretBytes> keys) {
  const std::string name = op["op"];
  op.erase("op");
  // What cannot be written as JSON never arrives.
  const json arrived =
      json::parse(op.dump(-1, ' ', false, json::error_handler_t::replace), nullptr, false);
  Fields fields(arrived);
  try {
    if (name == "sa-add") {
      const auto spec = parse_sa(fields, keys, [](const ifaces::IpAddress& a) {
        return a == *ifaces::IpAddress::parse("192.0.2.1");
      });
      require(spec.keymat.size() == crypto::info(spec.suite).keymat(), "a key of another length");
    } else if (name == "policy-add") {
      const auto spec = parse_policy(fields);
      static_cast<void>(policy_json({dataplane::PolicyId{1}, spec}).dump());
    } else if (name == "vti-add") {
      const auto spec = parse_vti(fields);
      require(spec.mtu >= 68 && spec.mtu <= 65535, "an MTU out of bounds");
    }
    fields.done();
  } catch (const std::invalid_argument& e) {
    check_refusal(e);
  }
}

void show(const std::string& text) {
  const json reply = json::parse(text, nullptr, false);
  if (reply.is_discarded()) return;
  static_cast<void>(status_text(reply));
  if (!reply.is_object()) return;
  for (const auto& text_of : {sa_lines, policy_lines, vti_line, vti_counters, event_line})
    static_cast<void>(text_of(reply));
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  crypto::initialise();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const unsigned kind = input.byte() % 4;
  const auto bytes = input.rest();
  if (kind == 3) {
    show({bytes.begin(), bytes.end()});
    return 0;
  }
  const std::vector<std::string> words = words_of(bytes);
  if (reads_a_file(words)) return 0;
  std::vector<crypto::SecretBytes> keys;
  try {
    parse(kind == 0   ? sa_operation(words, WordSource::file, keys)
          : kind == 1 ? policy_operation(words)
                      : vti_operation(words),
          keys);
  } catch (const UsageError& e) {
    check_refusal(e);
  }
  return 0;
}
