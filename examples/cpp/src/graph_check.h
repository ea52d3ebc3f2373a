// What a graph of a bundle must be before ONNX Runtime, which ends the process on some that are not, sees it.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "graph_file.h"

namespace dasheng {

// What a graph is fed in a run, by name and in its order: float32 of a shape (-1: as the graph says), or whole numbers.
struct Fed {
  std::string name;
  Shape shape;
  bool whole_numbers = false;
  Shape numbers;
};

// A run of a graph: what goes in, and what float32 shapes must come out (-1: any). `uses`: how often a weight may be.
struct Case {
  std::vector<Fed> feed;
  std::vector<std::pair<std::string, Shape>> wanted;
  int64_t uses = 1000;
};

// Checks `folder`/`name`; shapes of inputs and outputs in the last of the cases.
std::map<std::string, Shape> check_graph(const std::string &folder, const std::string &name, const std::vector<Case> &cases);

}  // namespace dasheng
