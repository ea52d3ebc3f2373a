// An ONNX file as far as it has to be known before ONNX Runtime sees it. Weights are passed over.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dasheng {

using Shape = std::vector<int64_t>;

enum Kind { kind_float = 1, kind_uint8 = 2, kind_int8 = 3, kind_int32 = 6, kind_int64 = 7, kind_bool = 9, kind_float16 = 10, kind_double = 11 };

int64_t item_bytes(int64_t kind);  // 0: of a kind that no graph of a bundle has
int64_t product(const Shape &shape);  // at most 2^62

constexpr size_t max_known = 64;  // values of a whole-number weight that shapes may be made of

struct Attribute {
  char kind = 0;  // 'f', 'i', 's', or 'l' for a list of whole numbers
  float real = 0;
  int64_t number = 0;
  std::string text;
  Shape list;
};

struct Weight {
  int64_t kind;
  Shape shape;
  std::optional<Shape> known;
  bool external = false;
  std::string location;
  int64_t offset = 0, length = 0;
};

struct Described {
  int64_t kind = 0;           // 0: nothing is said
  std::optional<Shape> shape;  // -1: a dimension that varies
};

struct Node {
  std::string op;  // with its domain in front, where it is not ai.onnx: "com.microsoft.MatMulNBits"
  std::vector<std::string> inputs, outputs;
  std::map<std::string, Attribute> attributes;
};

struct GraphFile {
  int64_t ir_version;
  std::map<std::string, int64_t> opsets;
  std::vector<Node> nodes;
  std::map<std::string, Weight> weights;
  std::vector<std::pair<std::string, Described>> inputs, outputs;
  std::map<std::string, Described> described;
};

GraphFile read_graph_file(std::string_view bytes);

}  // namespace dasheng
