#include "graph_file.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "json.h"

namespace dasheng {

int64_t item_bytes(int64_t kind) {
  switch (kind) {
    case kind_float: case kind_int32: return 4;
    case kind_uint8: case kind_int8: case kind_bool: return 1;
    case kind_int64: case kind_double: return 8;
    case kind_float16: return 2;
    default: return 0;
  }
}

int64_t product(const Shape &shape) {
  constexpr int64_t most = int64_t{1} << 62;
  int64_t total = 1;
  for (const int64_t size : shape)
    if (size <= 0) return 0;
  for (const int64_t size : shape) total = total > most / size ? most : total * size;
  return total;
}

namespace {

constexpr size_t max_fields = 1000000, max_text_bytes = 1024, max_rank = 8;

// Fields of a message: number, wire type, and whether it may come several times. Whatever is not listed is refused:
// functions, subgraphs, training information and sparse weights among them.
struct Field {
  uint32_t number;
  uint8_t wire;
  bool several = false;
};
enum Wire : uint8_t { varint = 0, bytes = 2, fixed32 = 5 };
using Fields = std::vector<Field>;
const Fields model_fields = {{1, varint}, {2, bytes}, {3, bytes}, {4, bytes}, {5, varint}, {6, bytes}, {7, bytes}, {8, bytes, true}, {14, bytes, true}};
const Fields graph_fields = {{1, bytes, true}, {2, bytes}, {5, bytes, true}, {10, bytes}, {11, bytes, true}, {12, bytes, true}, {13, bytes, true}, {16, bytes, true}};
const Fields node_fields = {{1, bytes, true}, {2, bytes, true}, {3, bytes}, {4, bytes}, {5, bytes, true}, {6, bytes}, {7, bytes}, {9, bytes, true}};
const Fields attribute_fields = {{1, bytes}, {2, fixed32}, {3, varint}, {4, bytes}, {8, varint, true}, {13, bytes}, {20, varint}};
const Fields tensor_fields = {{1, varint, true}, {2, varint}, {8, bytes}, {9, bytes}, {12, bytes}, {13, bytes, true}, {14, varint}, {16, bytes, true}};
const Fields value_fields = {{1, bytes}, {2, bytes}, {3, bytes}, {4, bytes, true}};
const Fields type_fields = {{1, bytes}, {6, bytes}};
const Fields tensor_type_fields = {{1, varint}, {2, bytes}};
const Fields shape_fields = {{1, bytes, true}};
const Fields dimension_fields = {{1, varint}, {2, bytes}, {3, bytes}};
const Fields opset_fields = {{1, bytes}, {2, varint}};
const Fields entry_fields = {{1, bytes}, {2, bytes}};

struct Value {
  int64_t number = 0;
  std::string_view span;
};

using Message = std::map<uint32_t, std::vector<Value>>;

class Reader {
 public:
  GraphFile model(std::string_view data) {
    const Message model = message(data, model_fields, "a model");
    const Message graph = message(one(model, 7), graph_fields, "a graph");
    GraphFile file;
    file.ir_version = number(model, 1);
    for (const Value &opset : all(model, 8)) {
      const Message fields = message(opset.span, opset_fields, "an opset");
      if (!file.opsets.emplace(text(fields, 1), number(fields, 2)).second) fail("it has an operator set twice");
    }
    for (const Value &value : all(graph, 1)) file.nodes.push_back(node(value.span));
    for (const Value &value : all(graph, 5)) weight(value.span, file);
    described(all(graph, 11), file.inputs);
    described(all(graph, 12), file.outputs);
    std::vector<std::pair<std::string, Described>> others;
    described(all(graph, 13), others);
    file.described.insert(others.begin(), others.end());
    return file;
  }

 private:
  static uint64_t take_varint(std::string_view data, size_t &at) {
    uint64_t value = 0;
    for (int shift = 0; at < data.size() && shift < 70; shift += 7) {
      const uint64_t byte = static_cast<unsigned char>(data[at++]);
      if (shift < 64) value |= (byte & 127) << shift;
      if (byte < 128) return value;
    }
    fail("it breaks off, or is no ONNX file");
  }

  Message message(std::string_view data, const Fields &known, const char *what) {
    Message fields;
    for (size_t at = 0; at < data.size();) {
      const uint64_t tag = take_varint(data, at);
      const auto field = std::find_if(known.begin(), known.end(), [&](const Field &one) { return one.number == tag >> 3; });
      if (field == known.end()) fail(what, " holds field ", tag >> 3, ", which no graph of a bundle has");
      std::vector<Value> &values = fields[field->number];
      const size_t before = values.size();
      take_value(data, at, *field, static_cast<uint8_t>(tag & 7), values);
      if (!field->several && values.size() > 1) fail(what, " states its field ", field->number, " twice");
      fields_ += values.size() - before;
      if (fields_ > max_fields) fail("it has more than ", max_fields, " fields");
    }
    return fields;
  }
  static void take_value(std::string_view data, size_t &at, const Field &field, uint8_t wire, std::vector<Value> &values) {
    if (wire == varint && field.wire == varint) {
      values.push_back({static_cast<int64_t>(take_varint(data, at)), {}});
    } else if (wire == fixed32 && field.wire == fixed32 && data.size() - at >= 4) {
      values.push_back({0, data.substr(at, 4)});
      at += 4;
    } else if (wire == bytes && (field.wire == bytes || (field.wire == varint && field.several))) {
      const uint64_t size = take_varint(data, at);
      if (size > data.size() - at) fail("it breaks off");
      const std::string_view span = data.substr(at, static_cast<size_t>(size));
      at += static_cast<size_t>(size);
      if (field.wire == bytes) values.push_back({0, span});
      for (size_t place = 0; field.wire == varint && place < span.size() && values.size() <= max_known;) values.push_back({static_cast<int64_t>(take_varint(span, place)), {}});
    } else {
      fail("its field ", field.number, " breaks off or has another type");
    }
  }

  static const std::vector<Value> &all(const Message &message, uint32_t field) {
    static const std::vector<Value> none;
    const auto found = message.find(field);
    return found == message.end() ? none : found->second;
  }
  static std::string_view one(const Message &message, uint32_t field) {
    if (all(message, field).empty()) fail("it lacks a part, so it is no ONNX file, or another kind of one");
    return all(message, field)[0].span;
  }
  static int64_t number(const Message &message, uint32_t field) {
    const auto &values = all(message, field);
    return values.empty() ? 0 : values[0].number;
  }
  static std::string decoded(std::string_view span) {
    if (span.size() > max_text_bytes || !is_utf8(span)) fail("a name is too long, or no UTF-8");
    return std::string(span);
  }
  static std::string text(const Message &message, uint32_t field) {
    const auto &values = all(message, field);
    return values.empty() ? "" : decoded(values[0].span);
  }

  Node node(std::string_view span) {
    const Message fields = message(span, node_fields, "a node");
    Node node;
    const std::string domain = text(fields, 7);
    node.op = domain.empty() ? text(fields, 4) : domain + "." + text(fields, 4);
    for (const Value &value : all(fields, 1)) node.inputs.push_back(decoded(value.span));
    for (const Value &value : all(fields, 2)) node.outputs.push_back(decoded(value.span));
    for (const Value &value : all(fields, 5)) attribute(value.span, node);
    return node;
  }

  void attribute(std::string_view span, Node &node) {
    const Message fields = message(span, attribute_fields, "an attribute");
    Attribute value;
    uint32_t field = 0;
    switch (number(fields, 20)) {  // AttributeProto.AttributeType
      case 1: value.kind = 'f', field = 2; break;
      case 2: value.kind = 'i', field = 3; break;
      case 3: value.kind = 's', field = 4; break;
      case 7: value.kind = 'l', field = 8; break;
      default: break;
    }
    bool fine = field != 0 && (value.kind == 'l' || !all(fields, field).empty());
    for (const uint32_t other : {2u, 3u, 4u, 8u}) fine = fine && (other == field || all(fields, other).empty());
    if (!fine) fail("an attribute of ", shown(node.op), " has no value, or one of another type");
    if (value.kind == 'f') std::memcpy(&value.real, one(fields, 2).data(), 4);
    if (value.kind == 'i') value.number = number(fields, 3);
    if (value.kind == 's') value.text = text(fields, 4);
    for (const Value &item : all(fields, 8)) value.list.push_back(item.number);
    if (!node.attributes.emplace(text(fields, 1), value).second) fail(shown(node.op), " has an attribute twice");
  }

  void weight(std::string_view span, GraphFile &file) {
    const Message fields = message(span, tensor_fields, "a weight");
    const std::string name = text(fields, 8);
    Weight weight;
    weight.kind = number(fields, 2);
    for (const Value &size : all(fields, 1)) weight.shape.push_back(size.number);
    const bool sized = std::all_of(weight.shape.begin(), weight.shape.end(), [](int64_t size) { return size >= 0; });
    if (!item_bytes(weight.kind) || weight.shape.size() > max_rank || !sized) fail("weight '", shown(name), "' has a type or a shape that no graph of a bundle has");
    const bool raw = !all(fields, 9).empty();
    int64_t stored = 0;
    if (number(fields, 14) == 0 && all(fields, 13).empty() && raw) {
      stored = static_cast<int64_t>(one(fields, 9).size());
    } else if (number(fields, 14) == 1 && !raw) {
      external(fields, weight);
      stored = weight.length;
    } else {
      fail("weight '", shown(name), "' has its values in no place, or in two");
    }
    if (product(weight.shape) > (int64_t{1} << 59) || product(weight.shape) * item_bytes(weight.kind) != stored) fail("weight '", shown(name), "' has ", stored, " bytes, which are not those of its type and shape");
    if (weight.kind == kind_int64 && !weight.external && product(weight.shape) <= static_cast<int64_t>(max_known)) {
      weight.known.emplace(static_cast<size_t>(product(weight.shape)));
      if (!weight.known->empty()) std::memcpy(weight.known->data(), one(fields, 9).data(), weight.known->size() * 8);
    }
    if (!file.weights.emplace(name, std::move(weight)).second) fail("it has two weights of one name");
  }

  void external(const Message &fields, Weight &weight) {
    std::map<std::string, std::string> facts;
    for (const Value &value : all(fields, 13)) {
      const Message entry = message(value.span, entry_fields, "an entry");
      if (!facts.emplace(text(entry, 1), text(entry, 2)).second) fail("a weight states its place twice");
    }
    for (const auto &[key, value] : facts) {
      const bool size = key == "offset" || key == "length";
      if ((!size && key != "location" && key != "checksum") || (size && (value.empty() || value.size() > 18 || value.find_first_not_of("0123456789") != value.npos)))
        fail("a weight states ", shown(key), " = ", shown(value), " for where its values are");
    }
    weight.external = true;
    weight.location = facts["location"];
    weight.offset = facts.count("offset") ? std::stoll(facts["offset"]) : 0;
    weight.length = facts.count("length") ? std::stoll(facts["length"]) : 0;
  }

  void described(const std::vector<Value> &values, std::vector<std::pair<std::string, Described>> &all_described) {
    std::map<std::string, bool> names;
    for (const Value &value : values) {
      const Message fields = message(value.span, value_fields, "a value");
      const std::string name = text(fields, 1);
      if (!names.emplace(name, true).second) fail("it describes a value twice");
      Described described;
      if (!all(fields, 2).empty()) {
        const Message type = message(one(fields, 2), type_fields, "a type");
        const Message tensor = message(one(type, 1), tensor_type_fields, "a type");
        described.kind = number(tensor, 1);
        if (!item_bytes(described.kind)) fail("value '", shown(name), "' has a type that no graph of a bundle has");
        if (!all(tensor, 2).empty()) described.shape = dimensions(one(tensor, 2));
      }
      all_described.emplace_back(name, described);
    }
  }
  Shape dimensions(std::string_view span) {
    Shape shape;
    const Message fields = message(span, shape_fields, "a shape");
    for (const Value &value : all(fields, 1)) {
      const Message dimension = message(value.span, dimension_fields, "a dimension");
      const bool stated = !all(dimension, 1).empty();
      if (stated && number(dimension, 1) < 0) fail("a value has a shape that no graph of a bundle has");
      shape.push_back(stated ? number(dimension, 1) : -1);
    }
    if (shape.size() > max_rank) fail("a value has a shape that no graph of a bundle has");
    return shape;
  }

  size_t fields_ = 0;
};

}  // namespace

GraphFile read_graph_file(std::string_view bytes) {
  if (bytes.empty()) fail("it is empty");
  return Reader().model(bytes);
}

}  // namespace dasheng
