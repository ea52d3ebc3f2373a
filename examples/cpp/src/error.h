// Failures are exceptions inside the library, each with a sentence; none crosses the border (api.cpp).
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace dasheng {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts &...parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw Error(sentence.str());
}

// What stands in a file of somebody else's, for a terminal: ASCII, and not long.
inline std::string shown(std::string_view text, size_t most = 60) {
  static const char digits[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < text.size() && i < most; i++) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c < 0x7f)
      out += static_cast<char>(c);
    else
      out += {'\\', 'x', digits[c >> 4], digits[c & 15]};
  }
  return text.size() > most ? out + "..." : out;
}

}  // namespace dasheng
