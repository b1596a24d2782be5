// What sealing and opening leave on the stack.
#pragma once

namespace espalier::crypto {

// Zeroes what functions that have returned left on this thread's stack: a nonce begins with a salt.
void wipe_stack() noexcept;

}  // namespace espalier::crypto
