#include "json.h"

#include <charconv>
#include <cmath>

#include "error.h"

namespace dasheng {

size_t utf8_length(std::string_view text, size_t at, uint32_t *character) {
  const auto byte = [&](size_t i) -> uint32_t { return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0; };
  const uint32_t first = byte(0);
  const size_t length = at >= text.size() ? 0 : first < 0x80 ? 1 : first >> 5 == 6 ? 2 : first >> 4 == 14 ? 3 : first >> 3 == 30 ? 4 : 0;
  uint32_t value = length == 1 ? first : length == 2 ? first & 31 : length == 3 ? first & 15 : first & 7;
  for (size_t i = 1; i < length; i++) {
    if (byte(i) >> 6 != 2) return 0;
    value = value << 6 | (byte(i) & 63);
  }
  static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  if (length == 0 || value < least[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return 0;
  if (character) *character = value;
  return length;
}

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

void append_utf8(std::string &text, uint32_t c) {
  const auto put = [&](uint32_t byte) { text += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6), put(0x80 | (c & 63));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12), put(0x80 | (c >> 6 & 63)), put(0x80 | (c & 63));
  } else {
    put(0xf0 | c >> 18), put(0x80 | (c >> 12 & 63)), put(0x80 | (c >> 6 & 63)), put(0x80 | (c & 63));
  }
}

namespace {

constexpr int max_depth = 32;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}
  Json document() {
    Json value = next(0);
    blanks();
    if (at_ < text_.size()) wrong("more behind its end");
    return value;
  }

 private:
  [[noreturn]] void wrong(const char *what) const { fail("no JSON, ", what, " at byte ", at_); }
  void blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) at_++;
  }
  char look() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char wanted) {
    blanks();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    at_++;
    return true;
  }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json next(int depth) {
    if (depth > max_depth) wrong("nested too deeply");
    blanks();
    Json value;
    if (take('{')) {
      value.kind = Json::Kind::object;
      if (take('}')) return value;
      do {
        blanks();
        std::string key = string();
        for (const auto &known : value.object)
          if (known.first == key) wrong("a key twice");
        if (!take(':')) wrong("expected a colon");
        value.object.emplace_back(std::move(key), next(depth + 1));
      } while (take(','));
      if (!take('}')) wrong("expected a comma or }");
    } else if (take('[')) {
      value.kind = Json::Kind::list;
      if (take(']')) return value;
      do value.list.push_back(next(depth + 1));
      while (take(','));
      if (!take(']')) wrong("expected a comma or ]");
    } else if (look() == '"') {
      value.kind = Json::Kind::text;
      value.text = string();
    } else if (take("true")) {
      value.kind = Json::Kind::boolean, value.boolean = true;
    } else if (take("false")) {
      value.kind = Json::Kind::boolean;
    } else if (!take("null")) {
      number(value);
    }
    return value;
  }

  void digits() {
    const size_t start = at_;
    while (look() >= '0' && look() <= '9') at_++;
    if (at_ == start) wrong("expected a value");
  }
  void number(Json &value) {
    const size_t start = at_;
    bool whole = true;
    if (look() == '-') at_++;
    const size_t first = at_;
    digits();
    if (text_[first] == '0' && at_ > first + 1) wrong("a number with a zero before it");
    if (look() == '.') whole = false, at_++, digits();
    if (look() == 'e' || look() == 'E') {
      whole = false, at_++;
      if (look() == '+' || look() == '-') at_++;
      digits();
    }
    const char *begin = text_.data() + start, *end = text_.data() + at_;
    const auto real = std::from_chars(begin, end, value.real);
    if (real.ec != std::errc() || !std::isfinite(value.real)) wrong("a number beyond all bounds");
    value.kind = Json::Kind::real;
    if (whole && std::from_chars(begin, end, value.integer).ec == std::errc()) value.kind = Json::Kind::integer;
  }

  uint32_t four() {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++, at_++) {
      const char c = look();
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) wrong("expected four hexadecimal digits");
      value = value << 4 | static_cast<uint32_t>(digit);
    }
    return value;
  }
  void escape(std::string &out) {
    static const std::string_view names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
    const size_t place = look() == '\0' ? names.npos : names.find(look());
    if (place != names.npos) {
      out += values[place], at_++;
      return;
    }
    if (look() != 'u') wrong("an unknown escape");
    at_++;
    uint32_t character = four();
    if (character >= 0xd800 && character < 0xdc00 && take("\\u")) {
      const uint32_t low = four();
      if (low < 0xdc00 || low > 0xdfff) wrong("a lone surrogate");
      character = 0x10000 + ((character - 0xd800) << 10) + (low - 0xdc00);
    } else if (character >= 0xd800 && character < 0xe000) {
      wrong("a lone surrogate");
    }
    append_utf8(out, character);
  }
  std::string string() {
    if (look() != '"') wrong("expected a text");
    at_++;
    std::string out;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\') {
        at_++;
        escape(out);
        continue;
      }
      const size_t length = utf8_length(text_, at_);
      if (length == 0 || static_cast<unsigned char>(text_[at_]) < 0x20) wrong("a character that must not be in a text");
      out.append(text_, at_, length);
      at_ += length;
    }
    if (at_++ >= text_.size()) wrong("a text without an end");
    return out;
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Json parse_json(std::string_view text) { return Parser(text).document(); }

}  // namespace dasheng
