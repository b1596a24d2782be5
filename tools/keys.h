// Static keys: the key file of one gateway, and the state file that keeps its IVs unique.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "crypto/secret.h"
#include "dataplane/types.h"

namespace espalier::tools {

// What a key file holds. Each direction has its own key, salt and SPI.
struct StaticKeys {
  crypto::Suite suite{};
  dataplane::Spi spi_in{}, spi_out{};
  crypto::SecretBytes keymat_in, keymat_out;  // cipher's key, integrity's, salt
  // SHA-256 over the outbound suite, SPI and key material, in hex: names the state file's owner
  // without telling the key.
  std::string fingerprint;
};

// Throws ConfigError "FILE:LINE: …": missing, readable by others, not owned by us or root, wrong
// length, the same key and salt in both directions, an unknown word.
[[nodiscard]] StaticKeys load_keys(const std::filesystem::path& file);
// The same from memory, which stays the caller's to wipe. `file` is for messages only.
[[nodiscard]] StaticKeys parse_keys(std::string_view text, const std::filesystem::path& file);
// What a key file of these keys says, for keygen.
[[nodiscard]] crypto::SecretBytes render_keys(const StaticKeys& keys, std::string_view comment);
[[nodiscard]] std::string fingerprint_of(const StaticKeys& keys);
// SHA-256 of a key and salt, in hex: to find equal ones without comparing each with each.
[[nodiscard]] std::string key_digest(const crypto::SecretBytes& keymat);

// Numbers are reserved on disk, fsynced, before they are used (RFC 4106 §3.1: an IV never twice
// under one key). One daemon at a time: the file is locked while this lives.
//
// What guards against an older copy of the file (a restored backup) is the witness: a second file,
// named by the fingerprint, in a folder that does not outlive the boot. A copy that is restored
// together with a reboot, or a machine that is set back whole, cannot be told from the truth.
class SequenceState {
 public:
  // `file` is the state file of these keys. Throws ConfigError if it is missing, damaged, belongs
  // to other keys, is in use by another daemon, or is older than what was handed out in this boot;
  // the message says what to do.
  SequenceState(const std::filesystem::path& file, const std::filesystem::path& witness_dir,
                const std::string& fingerprint);
  SequenceState(SequenceState&&) noexcept;
  SequenceState& operator=(SequenceState&&) noexcept;
  ~SequenceState();

  [[nodiscard]] std::uint64_t next() const noexcept;  // the first outbound number not yet reserved
  [[nodiscard]] std::uint64_t received() const noexcept;  // the highest inbound number known

  // After this returns, numbers below `next` are ours to use, for ever. Throws std::system_error,
  // or ConfigError if the file belongs to other keys by now; then nothing may be used beyond what
  // was reserved before.
  void reserve(std::uint64_t next);
  // Remembers the highest inbound number, so that a restart does not accept it again. Throws
  // std::system_error.
  void record_received(std::uint64_t received);
  // On a clean stop: gives back what was reserved and not used, and unlocks. `next` is the first
  // unused number. Throws std::system_error; then what was reserved stays used.
  void close(std::uint64_t next, std::uint64_t received);

  // For keygen: a fresh file. Throws std::system_error if it exists.
  static void create(const std::filesystem::path& file, const std::string& fingerprint);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Where the witnesses lie unless somebody says otherwise.
inline constexpr std::string_view kWitnessDir = "/run/espalier/witness";

}  // namespace espalier::tools
