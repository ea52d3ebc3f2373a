#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "error.h"

namespace dasheng {

int64_t file_bytes(const std::string &path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) ? static_cast<int64_t>(status.st_size) : -1;
}

namespace {

struct Descriptor {
  int number;
  explicit Descriptor(const std::string &path) : number(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    struct stat status;
    if (number < 0) fail("cannot open ", shown(path, 200), ": ", std::strerror(errno), "; check the path");
    if (fstat(number, &status) != 0 || !S_ISREG(status.st_mode)) {
      close(number);
      fail(shown(path, 200), " is not a file");
    }
  }
  ~Descriptor() { close(number); }
};

// FIPS 180-4.
class Sha256 {
 public:
  void add(const unsigned char *data, size_t size) {
    bits_ += static_cast<uint64_t>(size) * 8;
    while (size > 0) {
      const size_t part = std::min(size, block_.size() - filled_);
      std::memcpy(&block_[filled_], data, part);
      filled_ += part, data += part, size -= part;
      if (filled_ == block_.size()) mix();
    }
  }
  std::string digest() {
    const uint64_t bits = bits_;
    const unsigned char end = 0x80, zero = 0;
    add(&end, 1);
    while (filled_ != 56) add(&zero, 1);
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
    add(length, 8);
    static const char digits[] = "0123456789abcdef";
    std::string text;
    for (uint32_t word : state_)
      for (int shift = 28; shift >= 0; shift -= 4) text += digits[(word >> shift) & 15];
    return text;
  }

 private:
  static uint32_t turned(uint32_t x, int n) { return x >> n | x << (32 - n); }
  void mix() {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
        0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
        0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
        0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
        0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
        0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64];
    for (size_t i = 0; i < 16; i++)
      w[i] = static_cast<uint32_t>(block_[4 * i]) << 24 | static_cast<uint32_t>(block_[4 * i + 1]) << 16 |
             static_cast<uint32_t>(block_[4 * i + 2]) << 8 | block_[4 * i + 3];
    for (size_t i = 16; i < 64; i++) {
      const uint32_t s0 = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3;
      const uint32_t s1 = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (size_t i = 0; i < 64; i++) {
      const uint32_t one = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i];
      const uint32_t two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    const std::array<uint32_t, 8> step = {a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < 8; i++) state_[i] += step[i];
    filled_ = 0;
  }
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> block_{};
  size_t filled_ = 0;
  uint64_t bits_ = 0;
};

}  // namespace

MappedFile::MappedFile(const std::string &path) {
  const Descriptor file(path);
  struct stat status;
  if (fstat(file.number, &status) != 0) fail("cannot read ", shown(path, 200), ": ", std::strerror(errno));
  if (status.st_size == 0) return;
  void *place = mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, file.number, 0);
  if (place == MAP_FAILED) fail("cannot map ", shown(path, 200), ": ", std::strerror(errno), "; free some memory");
  data_ = static_cast<const char *>(place);
  size_ = static_cast<size_t>(status.st_size);
}

MappedFile::~MappedFile() {
  if (size_ > 0) munmap(const_cast<char *>(data_), size_);
}

std::string sha256_of(const std::string &path) {
  const Descriptor file(path);
  std::vector<unsigned char> block(1 << 20);
  Sha256 hash;
  for (;;) {
    const ssize_t got = read(file.number, block.data(), block.size());
    if (got < 0) fail("cannot read ", shown(path, 200), ": ", std::strerror(errno));
    if (got == 0) return hash.digest();
    hash.add(block.data(), static_cast<size_t>(got));
  }
}

}  // namespace dasheng
