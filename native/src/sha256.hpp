#pragma once

#include <filesystem>
#include <string>

namespace convnextv2 {

// The SHA-256 of a file in 64 hexadecimal digits, from the system's own library: CommonCrypto, or OpenSSL. Throws
// Error.
std::string sha256(const std::filesystem::path& path);

}  // namespace convnextv2
