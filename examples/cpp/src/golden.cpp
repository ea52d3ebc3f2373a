#include "golden.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string_view>

#include "error.h"
#include "file.h"
#include "json.h"

namespace dasheng {
namespace {

constexpr uint64_t max_bytes = 64 << 20, max_names_bytes = 1 << 16;

template <class Number>
Number little(std::string_view bytes, size_t at) {
  if (at + sizeof(Number) < at || at + sizeof(Number) > bytes.size()) fail("it breaks off");
  Number value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// Canonical Huffman codes, decoded bit by bit: golden files have a few megabytes.
class Codes {
 public:
  explicit Codes(const std::vector<uint8_t> &lengths) {
    for (const uint8_t length : lengths) count_[length]++;
    count_[0] = 0;
    int left = 1;
    for (int length = 1; length < 16; length++)
      if ((left = 2 * left - count_[length]) < 0) fail("its codes are no Huffman codes");
    uint16_t start[16] = {};
    for (int length = 1; length < 15; length++) start[length + 1] = static_cast<uint16_t>(start[length] + count_[length]);
    symbols_.resize(lengths.size());
    for (size_t symbol = 0; symbol < lengths.size(); symbol++)
      if (lengths[symbol]) symbols_[start[lengths[symbol]]++] = static_cast<uint16_t>(symbol);
  }
  template <class Bits>
  uint32_t next(Bits &bits) const {
    int code = 0, first = 0, index = 0;
    for (int length = 1; length < 16; length++) {
      code |= static_cast<int>(bits.take(1));
      const int count = count_[length];
      if (code - count < first) return symbols_[static_cast<size_t>(index + code - first)];
      index += count, first = (first + count) * 2, code *= 2;
    }
    fail("it holds a code that is none");
  }

 private:
  uint16_t count_[16] = {};
  std::vector<uint16_t> symbols_;
};

class Bits {
 public:
  explicit Bits(std::string_view data) : data_(data) {}
  uint32_t take(int count) {
    while (have_ < count) {
      if (at_ >= data_.size()) fail("it breaks off");
      held_ |= static_cast<uint64_t>(static_cast<unsigned char>(data_[at_++])) << have_;
      have_ += 8;
    }
    const uint32_t value = static_cast<uint32_t>(held_ & ((uint64_t{1} << count) - 1));
    held_ >>= count, have_ -= count;
    return value;
  }
  std::string_view stored() {  // what lies behind the byte that was begun
    held_ = 0, have_ = 0;
    const size_t length = little<uint16_t>(data_, at_), check = little<uint16_t>(data_, at_ + 2);
    if ((length ^ check) != 0xffff || length > data_.size() - at_ - 4) fail("it breaks off");
    at_ += 4 + length;
    return data_.substr(at_ - length, length);
  }

 private:
  std::string_view data_;
  size_t at_ = 0;
  uint64_t held_ = 0;
  int have_ = 0;
};

void inflate_block(Bits &bits, const Codes &literals, const Codes &distances, std::string &out, size_t size) {
  static const uint16_t bases[] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
  static const uint8_t extras[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
  static const uint16_t starts[] = {1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
  for (;;) {
    const uint32_t symbol = literals.next(bits);
    if (symbol == 256) return;
    if (symbol < 256) {
      if (out.size() >= size) fail("it holds more than it states");
      out += static_cast<char>(symbol);
      continue;
    }
    if (symbol > 285) fail("it holds a code that is none");
    const size_t length = bases[symbol - 257] + bits.take(extras[symbol - 257]);
    const uint32_t code = distances.next(bits);
    if (code > 29) fail("it holds a code that is none");
    const size_t distance = starts[code] + bits.take(code < 2 ? 0 : static_cast<int>(code / 2 - 1));
    if (distance > out.size() || length > size - out.size()) fail("it holds more than it states");
    for (size_t i = 0; i < length; i++) out += out[out.size() - distance];
  }
}

std::pair<Codes, Codes> dynamic_codes(Bits &bits) {
  static const uint8_t order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  const size_t literals = bits.take(5) + 257, distances = bits.take(5) + 1, count = bits.take(4) + 4;
  std::vector<uint8_t> lengths(19);
  for (size_t i = 0; i < count; i++) lengths[order[i]] = static_cast<uint8_t>(bits.take(3));
  const Codes codes(lengths);
  lengths.clear();
  while (lengths.size() < literals + distances) {
    const uint32_t symbol = codes.next(bits);
    if (symbol < 16) {
      lengths.push_back(static_cast<uint8_t>(symbol));
      continue;
    }
    if (symbol == 16 && lengths.empty()) fail("its codes are no Huffman codes");
    const uint8_t repeated = symbol == 16 ? lengths.back() : 0;
    lengths.insert(lengths.end(), symbol == 16 ? 3 + bits.take(2) : symbol == 17 ? 3 + bits.take(3) : 11 + bits.take(7), repeated);
  }
  if (lengths.size() > literals + distances) fail("its codes are no Huffman codes");
  const auto split = lengths.begin() + static_cast<std::ptrdiff_t>(literals);
  return {Codes({lengths.begin(), split}), Codes({split, lengths.end()})};
}

uint32_t crc32(std::string_view bytes) {
  uint32_t crc = 0xffffffff;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc;
}

struct Member {
  uint16_t method;
  uint32_t crc, packed, bytes, place;
};

struct Npy {
  std::string type;
  std::vector<int64_t> shape;
  std::string data;
};

// The header of an array: {'descr': '<f4', 'fortran_order': False, 'shape': (64, 20), }
class NpyHeader {
 public:
  NpyHeader(std::string_view text, Npy &array) : text_(text) {
    int seen = 0;
    need('{');
    while (!take('}')) {
      const std::string key = quoted();
      need(':');
      if (key == "descr") {
        array.type = quoted(), seen |= 1;
      } else if (key == "fortran_order") {
        blanks();
        if (text_.substr(at_, 5) != "False") fail("an array is stored in another order than by rows");
        at_ += 5, seen |= 2;
      } else if (key == "shape") {
        need('(');
        while (!take(')')) {
          array.shape.push_back(number());
          if (!take(',')) {
            need(')');
            break;
          }
        }
        seen |= 4;
      } else {
        fail("an array's header has the key ", shown(key));
      }
      take(',');
    }
    if (seen != 7) fail("an array's header lacks a key");
  }

 private:
  void blanks() {
    while (at_ < text_.size() && text_[at_] == ' ') at_++;
  }
  bool take(char wanted) {
    blanks();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    at_++;
    return true;
  }
  void need(char wanted) {
    if (!take(wanted)) fail("an array's header is none of NumPy's");
  }
  std::string quoted() {
    need('\'');
    const size_t end = text_.find('\'', at_);
    if (end == text_.npos) fail("an array's header is none of NumPy's");
    const std::string value(text_.substr(at_, end - at_));
    at_ = end + 1;
    return value;
  }
  int64_t number() {
    blanks();
    int64_t value = 0;
    const size_t start = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; at_++)
      if ((value = value * 10 + (text_[at_] - '0')) > int64_t{1} << 40) fail("an array has a size beyond all bounds");
    if (at_ == start) fail("an array's header is none of NumPy's");
    return value;
  }
  std::string_view text_;
  size_t at_ = 0;
};

class Npz {
 public:
  explicit Npz(const std::string &path) : file_(path), bytes_(file_.bytes()) {
    if (bytes_.size() > max_bytes) fail("it has ", bytes_.size(), " bytes, expected at most ", max_bytes);
    const size_t end = bytes_.rfind("PK\5\6");
    if (end == bytes_.npos) fail("it is no ZIP file");
    size_t at = little<uint32_t>(bytes_, end + 16);
    for (int count = little<uint16_t>(bytes_, end + 10); count > 0; count--) {
      if (little<uint32_t>(bytes_, at) != 0x02014b50) fail("its directory is damaged");
      const size_t name = little<uint16_t>(bytes_, at + 28), extra = little<uint16_t>(bytes_, at + 30), comment = little<uint16_t>(bytes_, at + 32);
      if (name > bytes_.size() - at - 46) fail("it breaks off");
      members_[std::string(bytes_.substr(at + 46, name))] = {little<uint16_t>(bytes_, at + 10), little<uint32_t>(bytes_, at + 16), little<uint32_t>(bytes_, at + 20), little<uint32_t>(bytes_, at + 24),
                                                             little<uint32_t>(bytes_, at + 42)};
      at += 46 + name + extra + comment;
    }
  }

  // An array by its name: what its header states, its size in the file and the limit are held together before any
  // value is unpacked.
  Npy array(const std::string &name, const char *type, size_t dimensions, uint64_t most = max_bytes) {
    const auto found = members_.find(name + ".npy");
    if (found == members_.end()) fail("it lacks ", name);
    const Member &member = found->second;
    if (member.bytes > std::min(most, left_)) fail(name, " has ", member.bytes, " bytes, expected at most ", std::min(most, left_));
    if (little<uint32_t>(bytes_, member.place) != 0x04034b50) fail(name, " is not where the directory says");
    const size_t start = size_t{member.place} + 30 + little<uint16_t>(bytes_, member.place + 26) + little<uint16_t>(bytes_, member.place + 28);
    if (start > bytes_.size() || member.packed > bytes_.size() - start) fail("it breaks off");
    const std::string packed(bytes_.substr(start, member.packed));
    if (member.method != 0 && member.method != 8) fail(name, " is compressed by method ", member.method, ", expected 0 or 8");
    if (member.method == 0 && member.packed != member.bytes) fail(name, " has two sizes");
    std::string content = member.method == 8 ? inflate(packed, member.bytes) : packed;
    if (crc32(content) != member.crc) fail(name, " is damaged");
    left_ -= member.bytes;
    if (content.compare(0, 8, std::string("\x93NUMPY\1\0", 8)) != 0) fail(name, " is no array of NumPy's format 1.0");
    const size_t header = little<uint16_t>(content, 8);
    if (header > content.size() - 10) fail(name, " breaks off");
    Npy array;
    NpyHeader(std::string_view(content).substr(10, header), array);
    const bool text = array.type.compare(0, 2, "<U") == 0 && array.type.size() < 8 && array.type.find_first_not_of("0123456789", 2) == array.type.npos && array.type.size() > 2;
    const bool same = type == std::string("U") ? text : array.type == type;
    if (!same || array.shape.size() != dimensions) fail(name, " is ", shown(array.type), " with ", array.shape.size(), " dimensions, expected ", type, " with ", dimensions);
    uint64_t bytes = text ? 4 * std::stoul(array.type.substr(2)) : array.type == "<i2" ? 2 : 4;
    for (const int64_t size : array.shape) bytes = size == 0 ? 0 : bytes > max_bytes / static_cast<uint64_t>(size) ? max_bytes + 1 : bytes * static_cast<uint64_t>(size);
    if (bytes != content.size() - 10 - header) fail(name, " states another size than it has");
    if (bytes == 0) fail(name, " is empty");
    array.data = content.substr(10 + header);
    return array;
  }

  std::vector<std::string> names() {
    const Npy array = this->array("names", "U", 1, max_names_bytes);
    const size_t clips = static_cast<size_t>(array.shape[0]), width = array.data.size() / clips;
    std::vector<std::string> names(clips);
    for (size_t clip = 0; clip < clips; clip++)
      for (size_t at = 0; at < width; at += 4)
        if (const uint32_t character = little<uint32_t>(array.data, clip * width + at)) append_utf8(names[clip], character < 0x110000 && (character < 0xd800 || character > 0xdfff) ? character : 0xfffd);
    return names;
  }

  template <class Number>
  std::vector<Number> numbers(const std::string &name, const char *type, size_t dimensions, std::vector<int64_t> *shape = nullptr) {
    const Npy array = this->array(name, type, dimensions);
    if (shape) *shape = array.shape;
    std::vector<Number> values(array.data.size() / sizeof(Number));
    std::memcpy(values.data(), array.data.data(), values.size() * sizeof(Number));
    return values;
  }
  Array matrix(const std::string &name) {
    Array array;
    array.values = numbers<float>(name, "<f4", 2, &array.shape);
    return array;
  }
  std::vector<int32_t> prompt(const std::string &name) {
    std::vector<int32_t> ids = numbers<int32_t>(name, "<i4", 1);
    if (std::count(ids.begin(), ids.end(), -1) != 1) fail(name, " has not one place for the audio");
    return ids;
  }

 private:
  MappedFile file_;
  std::string_view bytes_;
  std::map<std::string, Member> members_;
  uint64_t left_ = max_bytes;
};

template <class Reads>
auto reading(const std::string &path, Reads reads) {
  try {
    Npz file(path);
    return reads(file);
  } catch (const Error &error) {
    fail("golden.npz is not a readable golden file: ", error.what(), "; export the bundle again");
  }
}

}  // namespace

std::string inflate(const std::string &deflated, size_t size) {
  Bits bits(deflated);
  std::string out;
  out.reserve(size);
  for (bool last = false; !last;) {
    last = bits.take(1) != 0;
    const uint32_t kind = bits.take(2);
    if (kind == 0) {
      const std::string_view stored = bits.stored();
      if (stored.size() > size - out.size()) fail("it holds more than it states");
      out += stored;
    } else if (kind == 1) {
      std::vector<uint8_t> lengths(288, 8);
      std::fill(lengths.begin() + 144, lengths.begin() + 256, uint8_t{9});
      std::fill(lengths.begin() + 256, lengths.begin() + 280, uint8_t{7});
      inflate_block(bits, Codes(lengths), Codes(std::vector<uint8_t>(30, 5)), out, size);
    } else if (kind == 2) {
      const auto [literals, distances] = dynamic_codes(bits);
      inflate_block(bits, literals, distances, out, size);
    } else {
      fail("it holds a block that is none");
    }
  }
  if (out.size() != size) fail("it holds less than it states");
  return out;
}

std::vector<GoldenClip> read_golden(const std::string &path, bool acoustic, bool decodes, size_t most) {
  return reading(path, [&](Npz &file) {
    std::vector<GoldenClip> clips;
    for (const std::string &name : file.names()) {
      const std::string i = "_" + std::to_string(clips.size());
      if (most && clips.size() == most) break;
      GoldenClip clip;
      clip.name = name;
      for (const int16_t sample : file.numbers<int16_t>("waveform" + i, "<i2", 1)) clip.samples.push_back(static_cast<float>(sample) / 32768.0f);
      clip.log_mel = file.matrix("log_mel" + i);
      clip.patches = file.matrix("patches" + i);
      if (acoustic) clip.acoustic_mel = file.matrix("acoustic_mel" + i);
      if (decodes) {
        clip.embeddings = file.matrix("embeddings" + i);
        clip.prompt = file.prompt("prompt" + i);
        clip.logits = file.numbers<float>("logits" + i, "<f4", 1);
        clip.tokens = file.numbers<int32_t>("tokens" + i, "<i4", 1);
        clip.margins = file.numbers<float>("margins" + i, "<f4", 1);
      }
      clips.push_back(std::move(clip));
    }
    return clips;
  });
}

std::vector<int32_t> read_default_prompt(const std::string &path) {
  return reading(path, [](Npz &file) { return file.prompt("prompt_0"); });
}

}  // namespace dasheng
