#include "graph_check.h"

#include <algorithm>
#include <set>

#include "error.h"
#include "file.h"
#include "graph_shapes.h"

namespace dasheng {
namespace {

constexpr size_t max_nodes = 20000;
constexpr double max_live_bytes = 1 << 30, max_work = 2e9;

double bytes_of(const Known &value) { return static_cast<double>(item_bytes(value.kind)) * static_cast<double>(product(value.shape)); }

void check_parts(const GraphFile &graph, const std::string &folder, const std::string &name) {
  if (graph.ir_version < 8 || graph.ir_version > 11) fail("IR version ", graph.ir_version, ", expected 8 to 11");
  for (const auto &[domain, version] : graph.opsets)
    if ((domain.empty() && version != 23) || (!domain.empty() && (domain != "com.microsoft" || version != 1))) fail("operator set '", shown(domain), "' ", version, ", expected ai.onnx 23 and com.microsoft 1");
  if (!graph.opsets.count("")) fail("it states no operator set of ai.onnx");
  if (graph.nodes.size() > max_nodes) fail(graph.nodes.size(), " operators, expected at most ", max_nodes);
  const int64_t size = std::max<int64_t>(file_bytes(folder + "/" + name + ".data"), 0);
  for (const auto &[weight, facts] : graph.weights)
    if (facts.external && (facts.location != name + ".data" || facts.offset > size || facts.length > size - facts.offset)) fail("weight '", shown(weight), "' is not inside ", name, ".data, which has ", size, " bytes");
}

// What a graph says of a value must be what it is.
void check_described(const std::string &name, const Described &stated, const Known &value) {
  if (!stated.kind) return;
  bool fits = stated.kind == value.kind;
  if (stated.shape) {
    fits = fits && stated.shape->size() == value.shape.size();
    for (size_t i = 0; fits && i < value.shape.size(); i++) fits = (*stated.shape)[i] == -1 || (*stated.shape)[i] == value.shape[i];
  }
  if (!fits) fail("'", shown(name), "' has another type or shape than is said of it");
}

// One run of a graph: shapes of all its values, how much is held at once, and how much is computed.
class Run {
 public:
  Run(const GraphFile &graph, const Case &given) : graph_(graph), case_(given) {
    feed();
    for (size_t place = 0; place < graph.nodes.size(); place++)
      for (const std::string &name : graph.nodes[place].inputs) last_[name] = place;
    for (const auto &output : graph.outputs) last_[output.first] = graph.nodes.size();
    for (const auto &weight : graph.weights) weights_ += static_cast<double>(product(weight.second.shape));
    for (size_t place = 0; place < graph.nodes.size(); place++) step(place);
  }

  std::map<std::string, Shape> results() const {
    std::map<std::string, Shape> shapes;
    for (const Fed &fed : case_.feed) shapes[fed.name] = values_.at(fed.name).shape;
    for (size_t i = 0; i < case_.wanted.size(); i++) {
      const auto &[name, wanted] = case_.wanted[i];
      const auto got = values_.find(name);
      bool fits = got != values_.end() && got->second.kind == kind_float && got->second.shape.size() == wanted.size();
      for (size_t axis = 0; fits && axis < wanted.size(); axis++) fits = wanted[axis] == -1 || wanted[axis] == got->second.shape[axis];
      if (!fits) fail("it gives '", name, "' another type or shape than the counting law");
      check_described(name, graph_.outputs[i].second, got->second);
      shapes[name] = got->second.shape;
    }
    return shapes;
  }

 private:
  void feed() {
    bool same = graph_.inputs.size() == case_.feed.size() && graph_.outputs.size() == case_.wanted.size();
    for (size_t i = 0; same && i < case_.feed.size(); i++) same = graph_.inputs[i].first == case_.feed[i].name;
    for (size_t i = 0; same && i < case_.wanted.size(); i++) same = graph_.outputs[i].first == case_.wanted[i].first;
    if (!same) fail("it has other inputs or outputs than such a graph has");
    for (const auto &[name, weight] : graph_.weights) values_[name] = {weight.kind, weight.shape, weight.known, true};
    for (size_t i = 0; i < case_.feed.size(); i++) {
      const Fed &fed = case_.feed[i];
      const Described &stated = graph_.inputs[i].second;
      if (values_.count(fed.name)) fail("two values have one name");
      Known value{fed.whole_numbers ? kind_int64 : kind_float, fed.shape, std::nullopt, false};
      if (fed.whole_numbers) value.known = fed.numbers;
      if (!stated.shape || stated.shape->size() != fed.shape.size()) fail("input '", fed.name, "' states another shape than it has");
      for (size_t axis = 0; axis < value.shape.size(); axis++) {
        if (value.shape[axis] == -1) value.shape[axis] = (*stated.shape)[axis];
        if (value.shape[axis] < 1) fail("input '", fed.name, "' states another shape than it has");
      }
      check_described(fed.name, stated, value);
      values_[fed.name] = value;
      fed_.insert(fed.name);
    }
  }

  void step(size_t place) {
    const Node &node = graph_.nodes[place];
    Given given;
    std::vector<Known> outputs;
    try {
      for (const std::string &name : node.inputs) {
        const auto found = values_.find(name);
        if (found == values_.end()) fail("it takes '", shown(name), "', which nothing before it gives");
        given.push_back(&found->second);
      }
      outputs = outputs_of(node, given);
    } catch (const Error &error) {
      fail("operator ", shown(node.op), " that gives '", shown(node.outputs.empty() ? "" : node.outputs[0]), "': ", error.what());
    }
    work_ += work_of(node, given, outputs);
    for (size_t i = 0; i < outputs.size(); i++) {
      const std::string &name = node.outputs[i];
      if (name.empty() || values_.count(name)) fail("two values have one name, or one has none");
      if (const auto stated = graph_.described.find(name); stated != graph_.described.end()) check_described(name, stated->second, outputs[i]);
      live_ += bytes_of(outputs[i]);
      values_[name] = std::move(outputs[i]);
    }
    if (live_ > max_live_bytes || work_ > max_work + static_cast<double>(case_.uses) * weights_) fail("operator ", shown(node.op), " takes too much memory or time");
    std::set<std::string> names(node.inputs.begin(), node.inputs.end());
    names.insert(node.outputs.begin(), node.outputs.end());
    for (const std::string &name : names) {
      if (graph_.weights.count(name) || fed_.count(name)) continue;
      const auto last = last_.find(name);
      if (last == last_.end() || last->second == place) live_ -= bytes_of(values_[name]);
    }
  }

  const GraphFile &graph_;
  const Case &case_;
  std::map<std::string, Known> values_;
  std::map<std::string, size_t> last_;
  std::set<std::string> fed_;
  double live_ = 0, work_ = 0, weights_ = 0;
};

}  // namespace

std::map<std::string, Shape> check_graph(const std::string &folder, const std::string &name, const std::vector<Case> &cases) {
  const MappedFile file(folder + "/" + name);
  try {
    const GraphFile graph = read_graph_file(file.bytes());
    check_parts(graph, folder, name);
    std::map<std::string, Shape> shapes;
    for (const Case &one : cases) shapes = Run(graph, one).results();
    return shapes;
  } catch (const Error &error) {
    fail(name, " is no graph that a bundle may hold: ", error.what(), "; copy the bundle again, or export it again");
  }
}

}  // namespace dasheng
