#include "gguf_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <unordered_set>

#include "error.h"
#include "file.h"
#include "graph_file.h"
#include "json.h"

namespace dasheng {
namespace {

enum Type : uint32_t { u32 = 4, i32 = 5, f32 = 6, boolean = 7, text = 8, array = 9 };  // enum gguf_type
constexpr uint64_t max_keys = 4096, max_tensors = 1 << 16, max_texts = 1 << 21;
constexpr int64_t max_size = 1 << 24, max_layers = 512;
constexpr size_t max_template_bytes = 4 << 16, max_special = 1 << 12, max_special_bytes = 256, alignment = 32;

struct Value {
  uint32_t type = 0;
  bool several = false;
  int64_t number = 0;
  double real = 0;
  std::string_view text;
  std::vector<std::string_view> texts;
  std::vector<int32_t> numbers;
};

struct Tensor {
  Shape shape;
  uint32_t type;
  uint64_t offset;
};

struct Header {
  std::map<std::string, Value> values;
  std::vector<std::pair<std::string, Tensor>> tensors;
  uint64_t data = 0, size = 0;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  Header header() {
    if (take(4) != "GGUF" || number<uint32_t>() != 3) fail("is not a GGUF file of version 3");
    Header header;
    const uint64_t tensors = number<uint64_t>(), keys = number<uint64_t>();
    if (tensors > max_tensors || keys > max_keys) fail("has ", tensors, " tensors and ", keys, " keys, expected at most ", max_tensors, " and ", max_keys);
    for (uint64_t i = 0; i < keys; i++) {
      const std::string key = name();
      if (!header.values.emplace(key, value(key)).second) fail("has the key ", shown(key), " twice");
    }
    std::unordered_set<std::string> names;
    for (uint64_t i = 0; i < tensors; i++) {
      std::string tensor = name();
      if (!names.insert(tensor).second) fail("has the tensor ", shown(tensor), " twice");
      header.tensors.emplace_back(std::move(tensor), info());
    }
    header.data = (at_ + alignment - 1) / alignment * alignment;
    header.size = bytes_.size();
    return header;
  }

 private:
  std::string_view take(uint64_t count) {
    if (count > bytes_.size() - at_) fail("is truncated: it breaks off at byte ", bytes_.size());
    at_ += static_cast<size_t>(count);
    return bytes_.substr(at_ - static_cast<size_t>(count), static_cast<size_t>(count));
  }
  template <class Number>
  Number number() {
    Number value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view string() { return take(number<uint64_t>()); }
  std::string name() {
    const std::string_view name = string();
    if (!is_utf8(name)) fail("has a name that is no UTF-8");
    return std::string(name);
  }
  static uint64_t width(uint32_t type) {
    static const uint64_t widths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < 13 ? widths[type] : 0;
  }

  Value value(const std::string &key) {
    Value value;
    value.type = number<uint32_t>();
    if (value.type == array) {
      value.several = true;
      value.type = number<uint32_t>();
      items(key, value);
    } else if (value.type == text) {
      value.text = string();
    } else if (value.type == u32) {
      value.number = number<uint32_t>();
    } else if (value.type == f32) {
      value.real = number<float>();
    } else if (const uint64_t size = width(value.type)) {
      take(size);
    } else {
      fail("has a value of type ", value.type);
    }
    return value;
  }
  void items(const std::string &key, Value &value) {
    const uint64_t count = number<uint64_t>();
    if (value.type == text) {
      if ((texts_ += std::min(count, 2 * max_texts)) > max_texts) fail("has arrays of more than ", max_texts, " texts");
      const bool wanted = key.compare(0, 15, "tokenizer.ggml.") == 0;
      for (uint64_t i = 0; i < count; i++) {
        const std::string_view item = string();
        if (wanted) value.texts.push_back(item);
      }
      return;
    }
    const uint64_t size = width(value.type);
    if (!size || count > bytes_.size() / size) fail("has an array that breaks off, or of a type that is none");
    const std::string_view data = take(count * size);
    if (value.type == i32 && key == "tokenizer.ggml.token_type") {
      value.numbers.resize(static_cast<size_t>(count));
      if (count) std::memcpy(value.numbers.data(), data.data(), data.size());
    }
  }
  Tensor info() {
    Tensor tensor;
    const uint32_t rank = number<uint32_t>();
    if (rank < 1 || rank > 4) fail("has a tensor of ", rank, " dimensions");
    for (uint32_t i = 0; i < rank; i++) {
      const uint64_t size = number<uint64_t>();
      if (size < 1 || size > uint64_t{1} << 40) fail("has a tensor with a size beyond all bounds");
      tensor.shape.push_back(static_cast<int64_t>(size));
    }
    tensor.type = number<uint32_t>();
    tensor.offset = number<uint64_t>();
    return tensor;
  }

  std::string_view bytes_;
  size_t at_ = 0;
  uint64_t texts_ = 0;
};

bool is_plain(std::string_view text) { return is_utf8(text) && text.find('\0') == text.npos; }

// Keys that may be there, by type; negative: arrays. "#" stands for a number.
const std::map<std::string, int> &known_keys() {
  static const std::map<std::string, int> keys = [] {
    std::map<std::string, int> all;
    for (const char *key : {"architecture", "type", "name", "basename", "finetune", "version", "size_label", "license", "license.name", "license.link", "base_model.#.name", "base_model.#.organization",
                            "base_model.#.repo_url", "base_model.#.version"})
      all[std::string("general.") + key] = text;
    for (const char *key : {"general.tags", "general.languages", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"}) all[key] = -static_cast<int>(text);
    for (const char *key : {"file_type", "quantization_version", "alignment", "base_model.count"}) all[std::string("general.") + key] = u32;
    for (const char *key : {"temp", "penalty_repeat", "top_p", "min_p"}) all[std::string("general.sampling.") + key] = f32;
    all["general.sampling.top_k"] = i32;
    for (const char *key : {"tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template", "quantize.imatrix.file", "quantize.imatrix.dataset"}) all[key] = text;
    for (const char *key : {"bos", "eos", "eot", "eom", "padding"}) all[std::string("tokenizer.ggml.") + key + "_token_id"] = u32;
    all["tokenizer.ggml.add_bos_token"] = boolean;
    all["tokenizer.ggml.token_type"] = -static_cast<int>(i32);
    all["quantize.imatrix.entries_count"] = all["quantize.imatrix.chunks_count"] = u32;
    for (const char *key : {"context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
                            "vocab_size"})
      all[std::string("ARCH.") + key] = u32;
    all["ARCH.attention.layer_norm_rms_epsilon"] = all["ARCH.rope.freq_base"] = f32;
    return all;
  }();
  return keys;
}

std::string without_number(const std::string &key) {
  const std::string start = "general.base_model.";
  const size_t end = key.find_first_not_of("0123456789", start.size());
  const bool numbered = key.compare(0, start.size(), start) == 0 && end != key.npos && end > start.size() && end <= start.size() + 3 && key[end] == '.';
  return numbered ? start + "#" + key.substr(end) : key;
}

class Check {
 public:
  Check(const Header &header, const DecoderFacts &facts) : header_(header), facts_(facts), arch_(facts.arch + ".") {
    keys();
    sizes();
    vocabulary();
    tensors();
  }
  GgufSizes result() const { return {number("context_length"), kv_heads_ * head_width_}; }

 private:
  const Value *find(const std::string &key) const {
    const auto found = header_.values.find(key);
    return found == header_.values.end() ? nullptr : &found->second;
  }
  int64_t number(const char *key, int64_t standard = 0) const {
    const Value *found = find(arch_ + key);
    return found ? found->number : standard;
  }
  const Value &get(const std::string &key) const {
    const Value *found = find(key);
    if (!found) fail("lacks the key ", key);
    return *found;
  }

  void keys() const {
    if (get("general.architecture").text != facts_.arch) fail("is no ", facts_.arch, " model, as the manifest says");
    for (const auto &[key, value] : header_.values) {
      const std::string name = key.compare(0, arch_.size(), arch_) == 0 ? "ARCH." + key.substr(arch_.size()) : without_number(key);
      const auto known = known_keys().find(name);
      if (known == known_keys().end() || (key.compare(0, 5, "ARCH.") == 0)) fail("has the key ", shown(key), ", which is not one of a decoder");
      if (known->second != (value.several ? -1 : 1) * static_cast<int>(value.type)) fail("states ", key, " as another type");
      if (!std::isfinite(value.real)) fail("states ", key, " as no finite number");
      if (!is_plain(value.text)) fail("states ", key, " as something that is not plain text");
    }
    for (const char *key : {"tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"}) get(key);
    for (const char *key : {"context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count", "attention.layer_norm_rms_epsilon"}) get(arch_ + key);
    if (const Value *stated = find("general.alignment"); stated && stated->number != static_cast<int64_t>(alignment)) fail("has another alignment than ", alignment);
  }

  void sizes() {
    for (const char *key : {"context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size"}) {
      const int64_t got = number(key, 1), most = key == std::string("block_count") ? max_layers : max_size;
      if (got < 1 || got > most) fail("states ", arch_, key, " as ", got, ", expected 1 to ", most);
    }
    const Value *epsilon = find(arch_ + "attention.layer_norm_rms_epsilon"), *base = find(arch_ + "rope.freq_base");
    if (!(epsilon->real > 0 && epsilon->real <= 1) || (base && !(base->real > 1 && base->real <= 1e12))) fail("states a norm's epsilon or a rotation's base beyond all bounds");
    width_ = number("embedding_length"), layers_ = number("block_count"), inner_ = number("feed_forward_length"), heads_ = number("attention.head_count");
    kv_heads_ = number("attention.head_count_kv", heads_), head_width_ = number("attention.key_length", width_ / heads_);
    if (width_ != facts_.hidden_size || layers_ != facts_.layers || number("context_length") < facts_.context_length) fail("is not what the manifest describes: another width, number of layers or context");
    if (heads_ % kv_heads_ || head_width_ % 2 || head_width_ < 2 || number("attention.value_length", head_width_) != head_width_ || (facts_.arch == "qwen2" && heads_ * head_width_ != width_))
      fail("has heads that do not go together");
    if (facts_.arch == "qwen3" && head_width_ > max_size / heads_) fail("has heads that do not go together");
  }

  void vocabulary() {
    if (find("tokenizer.ggml.model")->text != "gpt2" || find("tokenizer.ggml.pre")->text != "qwen2") fail("has another tokenizer than gpt2 with qwen2's rules");
    const auto &tokens = find("tokenizer.ggml.tokens")->texts, &merges = find("tokenizer.ggml.merges")->texts;
    const auto &types = find("tokenizer.ggml.token_type")->numbers;
    tokens_ = static_cast<int64_t>(tokens.size());
    if (tokens_ != facts_.vocab_size || number("vocab_size", tokens_) != tokens_) fail("has ", tokens_, " tokens, the manifest states ", facts_.vocab_size);
    for (const char *key : {"bos", "eos", "eot", "eom", "padding"})
      if (const Value *id = find(std::string("tokenizer.ggml.") + key + "_token_id"); id && id->number >= tokens_) fail("states ", key, "_token_id as ", id->number, ", and has ", tokens_, " tokens");
    if (const Value *chat = find("tokenizer.chat_template"); chat && chat->text.size() > max_template_bytes) fail("has a chat template of ", chat->text.size(), " bytes");
    if (types.size() != tokens.size()) fail("has ", tokens.size(), " tokens and ", types.size(), " types of them");
    std::unordered_set<std::string_view> seen;
    size_t special = 0;
    for (size_t i = 0; i < tokens.size(); i++) {
      if (tokens[i].empty() || !is_plain(tokens[i]) || !seen.insert(tokens[i]).second) fail("has a token twice, an empty one, or one that is not plain text");
      if (types[i] != 1 && types[i] != 3 && types[i] != 4 && types[i] != 5) fail("has a token of type ", types[i]);
      if (types[i] != 3 && types[i] != 4) continue;
      if (++special > max_special || tokens[i].size() > max_special_bytes) fail("has too many special tokens, or too long ones");
    }
    for (const std::string_view merge : merges) {
      const size_t space = merge.find(' ', 1);
      if (!is_plain(merge) || space == merge.npos || space + 1 >= merge.size()) fail("has a merge that is not two tokens with a space between them");
    }
  }

  void tensors() const {
    const int64_t queries = heads_ * head_width_, shared = kv_heads_ * head_width_;
    std::map<std::string, Shape> layer = {{"attn_norm.weight", {width_}}, {"attn_q.weight", {width_, queries}}, {"attn_k.weight", {width_, shared}}, {"attn_v.weight", {width_, shared}}, {"attn_output.weight", {queries, width_}},
                                          {"ffn_norm.weight", {width_}}, {"ffn_gate.weight", {width_, inner_}}, {"ffn_up.weight", {width_, inner_}}, {"ffn_down.weight", {inner_, width_}}};
    if (facts_.arch == "qwen2")
      layer["attn_q.bias"] = {queries}, layer["attn_k.bias"] = {shared}, layer["attn_v.bias"] = {shared};
    else
      layer["attn_q_norm.weight"] = layer["attn_k_norm.weight"] = {head_width_};
    std::map<std::string, Shape> shapes = {{"token_embd.weight", {width_, tokens_}}, {"output_norm.weight", {width_}}, {"output.weight", {width_, tokens_}}};
    for (int64_t i = 0; i < layers_; i++)
      for (const auto &[name, shape] : layer) shapes["blk." + std::to_string(i) + "." + name] = shape;
    // Values and bytes of a block, by enum ggml_type.
    static const std::map<uint32_t, std::pair<int64_t, int64_t>> blocks = {
        {0, {1, 4}},      {1, {1, 2}},      {30, {1, 2}},     {2, {32, 18}},    {3, {32, 20}},   {6, {32, 22}},   {7, {32, 24}},    {8, {32, 34}},   {10, {256, 84}}, {11, {256, 110}}, {12, {256, 144}},
        {13, {256, 176}}, {14, {256, 210}}, {16, {256, 66}}, {17, {256, 74}}, {18, {256, 98}}, {20, {32, 18}}, {21, {256, 110}}, {22, {256, 82}}, {23, {256, 136}}};
    uint64_t place = 0;
    size_t outputs = 0;
    for (const auto &[name, tensor] : header_.tensors) {
      const auto wanted = shapes.find(name);
      if (wanted == shapes.end() || wanted->second != tensor.shape) fail("has the tensor ", shown(name), ", which is none of a decoder, or of another shape");
      outputs += name == "output.weight";
      const auto block = blocks.find(tensor.type);
      if (block == blocks.end() || tensor.shape[0] % block->second.first || (tensor.shape.size() == 1 && tensor.type != 0)) fail("stores ", name, " as type ", tensor.type, ", which does not fit it");
      if (tensor.offset != place) fail("has ", name, " somewhere else than directly behind the tensor before it");
      const uint64_t end = place + static_cast<uint64_t>(product(tensor.shape) / block->second.first) * static_cast<uint64_t>(block->second.second);
      if (end > header_.size || header_.data > header_.size - end) fail("is truncated: ", name, " ends behind the file");
      place = (end + alignment - 1) / alignment * alignment;
    }
    if (header_.tensors.size() - outputs != shapes.size() - 1) fail("lacks tensors of a decoder");
  }

  const Header &header_;
  const DecoderFacts &facts_;
  const std::string arch_;
  int64_t width_ = 0, layers_ = 0, inner_ = 0, heads_ = 0, kv_heads_ = 0, head_width_ = 0, tokens_ = 0;
};

}  // namespace

GgufSizes check_gguf(const std::string &path, const DecoderFacts &facts) {
  const MappedFile file(path);
  try {
    const Header header = Reader(file.bytes()).header();
    return Check(header, facts).result();
  } catch (const Error &error) {
    fail("decoder.gguf ", error.what(), "; llama.cpp was not given it: copy the bundle again, or export it again");
  }
}

}  // namespace dasheng
