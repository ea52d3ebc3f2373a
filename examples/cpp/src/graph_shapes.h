// The shapes that operators of a graph give, computed before the run; and how much work that is.
#pragma once
#include <optional>
#include <vector>

#include "graph_file.h"

namespace dasheng {

// What is known of a value in one run; `known` are whole numbers that shapes may be made of, row by row.
struct Known {
  int64_t kind = 0;
  Shape shape;
  std::optional<Shape> known;
  bool constant = false;
};
using Given = std::vector<const Known *>;

// Fails where the operator is none that graphs of a bundle have, or its inputs and attributes do not go together.
std::vector<Known> outputs_of(const Node &node, const Given &given);

double work_of(const Node &node, const Given &given, const std::vector<Known> &outputs);

}  // namespace dasheng
