// ONNX Runtime, by its C API: loaded when the first graph is opened, with its usage data off.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "graph_check.h"

namespace dasheng {

struct Tensor {
  std::string name;
  Shape shape;
  std::vector<float> values;
  std::vector<int64_t> whole;  // of inputs of whole numbers, which have no `values`
};

class Session {
 public:
  Session(const std::string &folder, const std::string &name, int threads);
  ~Session();
  // Outputs of the wanted names and shapes (-1: any), which are float32 and finite.
  std::vector<Tensor> run(std::vector<Tensor> inputs, const std::vector<std::pair<std::string, Shape>> &wanted) const;

 private:
  struct Parts;
  std::string name_;
  std::unique_ptr<Parts> parts_;
};

}  // namespace dasheng
