// JSON as RFC 8259 has it: no NaN, no lone surrogates, no key twice.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dasheng {

struct Json {
  enum class Kind { null, boolean, integer, real, text, list, object };
  Kind kind = Kind::null;
  bool boolean = false;
  int64_t integer = 0;
  double real = 0;  // of an integer, too
  std::string text;
  std::vector<Json> list;
  std::vector<std::pair<std::string, Json>> object;
};

Json parse_json(std::string_view text);

// Decodes a character of UTF-8 at `at`: its length in bytes, or 0 where there is none; overlong forms and surrogates are
// none.
size_t utf8_length(std::string_view text, size_t at, uint32_t *character = nullptr);
bool is_utf8(std::string_view text);
void append_utf8(std::string &text, uint32_t character);

}  // namespace dasheng
