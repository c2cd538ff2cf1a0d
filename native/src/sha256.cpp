#include "sha256.hpp"

#include <fstream>
#include <memory>
#include <vector>

#include "convnextv2/error.hpp"

#ifdef __APPLE__
#include <CommonCrypto/CommonDigest.h>
#else
#include <openssl/evp.h>
#endif

namespace convnextv2 {
namespace {

constexpr std::size_t kDigestBytes = 32;

#ifdef __APPLE__

class Digest {
 public:
  Digest() { CC_SHA256_Init(&context_); }
  void add(const char* data, std::size_t size) { CC_SHA256_Update(&context_, data, static_cast<CC_LONG>(size)); }
  void finish(unsigned char* digest) { CC_SHA256_Final(digest, &context_); }

 private:
  CC_SHA256_CTX context_;
};

#else

class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    require(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }
  void add(const char* data, std::size_t size) { require(EVP_DigestUpdate(context_.get(), data, size) == 1); }
  void finish(unsigned char* digest) { require(EVP_DigestFinal_ex(context_.get(), digest, nullptr) == 1); }

 private:
  static void require(bool done) {
    if (!done) throw Error(CONVNEXTV2_FAILED, "OpenSSL could not compute a SHA-256");
  }
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
};

#endif

}  // namespace

std::string sha256(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(CONVNEXTV2_NOT_FOUND, path.string() + " is not a file that can be read");
  Digest digest;
  std::vector<char> block(1 << 20);
  while (file) {
    file.read(block.data(), static_cast<std::streamsize>(block.size()));
    digest.add(block.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (file.bad()) throw Error(CONVNEXTV2_NOT_FOUND, path.string() + " cannot be read to its end");
  unsigned char bytes[kDigestBytes];
  digest.finish(bytes);
  std::string text;
  for (const unsigned char byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

}  // namespace convnextv2
