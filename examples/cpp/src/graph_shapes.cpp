#include "graph_shapes.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "error.h"

namespace dasheng {
namespace {

constexpr int64_t max_size = int64_t{1} << 40;   // of a dimension
constexpr int64_t max_scores = int64_t{1} << 26;  // of one Attention

void need(bool fine, const char *problem) {
  if (!fine) fail(problem);
}

size_t rank_of(const Known &value) { return value.shape.size(); }
bool empty(const Known &value) { return product(value.shape) == 0; }

const Attribute *find(const Node &node, const char *name) {
  const auto found = node.attributes.find(name);
  return found == node.attributes.end() ? nullptr : &found->second;
}
int64_t whole(const Node &node, const char *name, int64_t standard = 0) {
  const Attribute *found = find(node, name);
  return found && found->kind == 'i' ? found->number : standard;
}
const Shape &list(const Node &node, const char *name) {
  static const Shape none;
  const Attribute *found = find(node, name);
  return found ? found->list : none;
}

size_t axis_of(int64_t axis, size_t rank) {
  const int64_t count = static_cast<int64_t>(rank);
  need(-count <= axis && axis < count, "an axis that is not there");
  return static_cast<size_t>(axis < 0 ? axis + count : axis);
}
// Whole numbers [n] that a shape is made of.
const Shape &numbers(const Known &value) {
  need(value.known && rank_of(value) == 1, "a shape is made of numbers that are not known before the run");
  return *value.known;
}
std::set<size_t> axes_of(const Known &value, size_t rank) {
  std::set<size_t> axes;
  for (const int64_t axis : numbers(value)) need(axes.insert(axis_of(axis, rank)).second, "an axis is named twice");
  return axes;
}
int64_t scalar(const Known &value) {
  need(value.known && value.known->size() == 1 && rank_of(value) < 2, "a number is not known before the run, or is no scalar");
  return (*value.known)[0];
}
std::optional<Shape> kept(std::optional<Shape> known) { return known && known->size() <= max_known ? known : std::nullopt; }

Shape broadcast(const Shape &one, const Shape &other) {
  Shape shape(std::max(one.size(), other.size()), 1);
  for (size_t i = 0; i < shape.size(); i++) {
    const int64_t a = i < one.size() ? one[one.size() - 1 - i] : 1, b = i < other.size() ? other[other.size() - 1 - i] : 1;
    need(a == b || a == 1 || b == 1, "shapes that do not go together");
    shape[shape.size() - 1 - i] = a == 1 ? b : a;
  }
  return shape;
}

std::vector<Known> result(int64_t kind, Shape shape, std::optional<Shape> known = std::nullopt) {
  std::vector<Known> results(1);
  results[0].kind = kind, results[0].shape = std::move(shape), results[0].known = kept(std::move(known));
  return results;
}
std::vector<Known> same(const Node &, const Given &given) { return result(given[0]->kind, given[0]->shape); }

int64_t computed(const std::string &op, int64_t one, int64_t other) {  // as int64 does, which wraps
  const uint64_t a = static_cast<uint64_t>(one), b = static_cast<uint64_t>(other);
  return op == "Div" ? one / other : static_cast<int64_t>(op == "Add" ? a + b : op == "Sub" ? a - b : a * b);
}

std::vector<Known> arithmetic(const Node &node, const Given &given) {
  const Known &one = *given[0], &other = *given[1];
  need(one.kind == other.kind, "two types in one operator");
  if (node.op == "Div" && one.kind != kind_float && one.kind != kind_float16 && one.kind != kind_double) {
    const bool divides = other.constant && other.known && std::all_of(other.known->begin(), other.known->end(), [](int64_t n) { return n > 0; });
    need(divides, "whole numbers are divided by something else than positive constants");
  }
  Shape shape = broadcast(one.shape, other.shape);
  std::optional<Shape> known;
  const bool exact = node.op == "Add" || node.op == "Sub" || node.op == "Mul" || node.op == "Div";
  const size_t count = static_cast<size_t>(std::min<int64_t>(product(shape), max_known + 1));
  // Of one shape, or one of them a single number: graphs of bundles have no others.
  const auto fits = [&](const Known &value) { return value.known && (value.known->size() == 1 || value.known->size() == count); };
  if (exact && count <= max_known && fits(one) && fits(other) && one.kind == kind_int64) {
    known.emplace();
    for (size_t i = 0; i < count; i++) known->push_back(computed(node.op, (*one.known)[one.known->size() == 1 ? 0 : i], (*other.known)[other.known->size() == 1 ? 0 : i]));
  }
  return result(node.op == "Less" ? int64_t{kind_bool} : one.kind, std::move(shape), std::move(known));
}

std::vector<Known> cast(const Node &node, const Given &given) {
  const int64_t kind = whole(node, "to");
  return result(kind, given[0]->shape, kind == kind_int64 ? given[0]->known : std::nullopt);
}

// Python's part of 0 to size from start to end.
std::pair<int64_t, int64_t> bounds(int64_t start, int64_t end, int64_t size) {
  const auto inside = [&](int64_t place) { return place < 0 ? std::max<int64_t>(place < -size ? 0 : place + size, 0) : std::min(place, size); };
  return {inside(start), inside(end)};
}

std::vector<Known> shape_of(const Node &node, const Given &given) {
  const int64_t rank = static_cast<int64_t>(rank_of(*given[0]));
  const auto [start, end] = bounds(whole(node, "start"), whole(node, "end", rank), rank);
  Shape sizes;
  for (int64_t i = start; i < end; i++) sizes.push_back(given[0]->shape[static_cast<size_t>(i)]);
  const int64_t count = static_cast<int64_t>(sizes.size());
  return result(kind_int64, {count}, std::move(sizes));
}

std::vector<Known> squeeze(const Node &, const Given &given) {
  const Known &data = *given[0];
  std::set<size_t> axes;
  if (given.size() > 1) {
    need(!empty(*given[1]), "an empty list of axes");
    axes = axes_of(*given[1], rank_of(data));
  }
  Shape shape;
  for (size_t axis = 0; axis < rank_of(data); axis++) {
    const bool goes = given.size() > 1 ? axes.count(axis) > 0 : data.shape[axis] == 1;
    need(!goes || data.shape[axis] == 1, "an axis that is not 1 is squeezed");
    if (!goes) shape.push_back(data.shape[axis]);
  }
  return result(data.kind, std::move(shape), data.known);
}

std::vector<Known> unsqueeze(const Node &, const Given &given) {
  const Known &data = *given[0];
  const size_t rank = rank_of(data) + numbers(*given[1]).size();
  const std::set<size_t> axes = axes_of(*given[1], rank);
  Shape shape;
  for (size_t axis = 0, next = 0; axis < rank; axis++) shape.push_back(axes.count(axis) ? 1 : data.shape[next++]);
  return result(data.kind, std::move(shape), data.known);
}

std::vector<Known> reshape(const Node &node, const Given &given) {
  const Known &data = *given[0];
  Shape wanted = numbers(*given[1]);
  const char *problem = "a shape cannot become another";
  int64_t open = -1;
  for (size_t axis = 0; axis < wanted.size(); axis++) {
    if (wanted[axis] == 0 && !whole(node, "allowzero")) {
      need(axis < rank_of(data), problem);
      wanted[axis] = data.shape[axis];
    }
    need(wanted[axis] >= -1 && wanted[axis] <= max_size && (wanted[axis] != -1 || open < 0), problem);
    if (wanted[axis] == -1) open = static_cast<int64_t>(axis);
  }
  const int64_t count = product(data.shape);
  if (open >= 0) {
    wanted[static_cast<size_t>(open)] = 1;
    const int64_t rest = product(wanted);
    need(rest > 0 && count % rest == 0, problem);
    wanted[static_cast<size_t>(open)] = count / rest;
  }
  need(product(wanted) == count, problem);
  return result(data.kind, std::move(wanted), data.known);
}

std::vector<Known> slice(const Node &, const Given &given) {
  const Known &data = *given[0];
  const Shape &starts = numbers(*given[1]), &ends = numbers(*given[2]), &named = numbers(*given[3]);
  axes_of(*given[3], rank_of(data));
  const Shape steps = given.size() > 4 ? numbers(*given[4]) : Shape(named.size(), 1);
  need(starts.size() == named.size() && ends.size() == named.size() && steps.size() == named.size(), "a Slice's numbers differ");
  Shape shape = data.shape, part;
  for (size_t i = 0; i < named.size(); i++) {
    need(steps[i] > 0, "a Slice goes backwards");
    const size_t axis = axis_of(named[i], rank_of(data));
    const auto [start, end] = bounds(starts[i], ends[i], data.shape[axis]);
    shape[axis] = end > start ? (end - start - 1) / steps[i] + 1 : 0;
    if (data.known && rank_of(data) == 1)
      for (int64_t k = 0; k < shape[0]; k++) part.push_back((*data.known)[static_cast<size_t>(start + k * steps[i])]);
  }
  const bool known = data.known && rank_of(data) == 1 && named.size() == 1;
  return result(data.kind, std::move(shape), known ? std::optional<Shape>(part) : std::nullopt);
}

std::vector<Known> gather(const Node &node, const Given &given) {
  const Known &data = *given[0], &places = *given[1];
  const size_t axis = axis_of(whole(node, "axis"), rank_of(data));
  need(places.known.has_value(), "a Gather's places are not known before the run");
  const int64_t size = data.shape[axis];
  Shape taken;
  for (const int64_t place : *places.known) {
    need(-size <= place && place < size, "a Gather takes places that are not there");
    if (data.known && rank_of(data) == 1) taken.push_back((*data.known)[static_cast<size_t>(place < 0 ? place + size : place)]);
  }
  Shape shape(data.shape.begin(), data.shape.begin() + static_cast<std::ptrdiff_t>(axis));
  shape.insert(shape.end(), places.shape.begin(), places.shape.end());
  shape.insert(shape.end(), data.shape.begin() + static_cast<std::ptrdiff_t>(axis) + 1, data.shape.end());
  return result(data.kind, std::move(shape), data.known && rank_of(data) == 1 ? std::optional<Shape>(taken) : std::nullopt);
}

std::vector<Known> concat(const Node &node, const Given &given) {
  const Known &first = *given[0];
  const size_t axis = axis_of(whole(node, "axis"), rank_of(first));
  Shape shape = first.shape;
  shape[axis] = 0;
  std::optional<Shape> known;
  if (rank_of(first) == 1) known.emplace();
  for (const Known *value : given) {
    need(value->kind == first.kind && rank_of(*value) == rank_of(first), "shapes that do not go together");
    for (size_t i = 0; i < shape.size(); i++) need(i == axis || value->shape[i] == shape[i], "shapes that do not go together");
    shape[axis] += value->shape[axis];
    if (known && value->known)
      known->insert(known->end(), value->known->begin(), value->known->end());
    else
      known.reset();
  }
  return result(first.kind, std::move(shape), std::move(known));
}

std::vector<Known> expand(const Node &, const Given &given) {
  const Shape &wanted = numbers(*given[1]);
  for (const int64_t size : wanted) need(size >= 0, "an Expand to less than nothing");
  return result(given[0]->kind, broadcast(given[0]->shape, wanted));
}

std::vector<Known> range(const Node &, const Given &given) {
  for (const Known *value : given) need(value->kind == kind_int64, "a Range of no whole numbers");
  const int64_t start = scalar(*given[0]), limit = scalar(*given[1]), step = scalar(*given[2]);
  need(step > 0 && start > -max_size && start < max_size && limit > -max_size && limit < max_size, "a Range beyond all bounds");
  return result(kind_int64, {limit > start ? (limit - start - 1) / step + 1 : 0});
}

std::vector<Known> pad(const Node &node, const Given &given) {
  const Shape &pads = numbers(*given[1]);
  Shape shape = given[0]->shape;
  need(pads.size() == 2 * shape.size(), "pads of another rank");
  const bool reflected = find(node, "mode")->text == "reflect";
  for (size_t i = 0; i < pads.size(); i++) {
    const int64_t size = given[0]->shape[i % shape.size()];
    need(reflected ? pads[i] >= 0 && pads[i] < std::max<int64_t>(size, 1) : pads[i] >= -size && pads[i] <= max_size, "pads that do not fit");
    shape[i % shape.size()] += pads[i];
  }
  for (const int64_t size : shape) need(size >= 0, "pads that do not fit");
  return result(given[0]->kind, std::move(shape));
}

std::vector<Known> transpose(const Node &node, const Given &given) {
  const Shape &order = list(node, "perm");
  Shape shape;
  std::set<int64_t> seen;
  for (const int64_t axis : order) {
    need(axis >= 0 && axis < static_cast<int64_t>(rank_of(*given[0])) && seen.insert(axis).second, "a perm that is none");
    shape.push_back(given[0]->shape[static_cast<size_t>(axis)]);
  }
  need(shape.size() == rank_of(*given[0]), "a perm that is none");
  return result(given[0]->kind, std::move(shape));
}

std::vector<Known> reduce(const Node &node, const Given &given) {
  const Known &data = *given[0];
  std::set<size_t> axes;
  if (given.size() > 1) {
    need(!empty(*given[1]), "an empty list of axes");
    axes = axes_of(*given[1], rank_of(data));
  }
  Shape shape;
  for (size_t axis = 0; axis < rank_of(data); axis++) {
    const bool goes = given.size() == 1 || axes.count(axis);
    need(!goes || data.shape[axis] > 0, "nothing to reduce");
    if (!goes || whole(node, "keepdims", 1)) shape.push_back(goes ? 1 : data.shape[axis]);
  }
  return result(data.kind, std::move(shape));
}

std::vector<Known> split(const Node &node, const Given &given) {
  const int64_t count = whole(node, "num_outputs");
  const size_t axis = axis_of(whole(node, "axis"), rank_of(*given[0]));
  need(count > 0 && count == static_cast<int64_t>(node.outputs.size()) && given[0]->shape[axis] % count == 0, "a Split that does not divide");
  Shape shape = given[0]->shape;
  shape[axis] /= count;
  return std::vector<Known>(static_cast<size_t>(count), result(given[0]->kind, shape)[0]);
}

Shape multiplied(const Shape &one, const Shape &other) {
  need(one.size() >= 2 && other.size() >= 2 && one[one.size() - 1] == other[other.size() - 2], "shapes that cannot be multiplied");
  Shape shape = broadcast({one.begin(), one.end() - 2}, {other.begin(), other.end() - 2});
  shape.push_back(one[one.size() - 2]);
  shape.push_back(other.back());
  return shape;
}
std::vector<Known> matmul(const Node &, const Given &given) {
  need(given[0]->kind == given[1]->kind, "a MatMul of two types");
  return result(given[0]->kind, multiplied(given[0]->shape, given[1]->shape));
}
std::vector<Known> matmul_integer(const Node &, const Given &given) {
  need(given[0]->kind == kind_uint8 && given[1]->kind == kind_int8 && given[2]->kind == kind_uint8 && rank_of(*given[2]) == 0, "types of a MatMulInteger");
  return result(kind_int32, multiplied(given[0]->shape, given[1]->shape));
}
std::vector<Known> quantize(const Node &, const Given &given) {
  need(given[0]->kind == kind_float && !empty(*given[0]), "a DynamicQuantizeLinear of no float32");
  std::vector<Known> results = result(kind_uint8, given[0]->shape);
  results.push_back(result(kind_float, {})[0]);
  results.push_back(result(kind_uint8, {})[0]);
  return results;
}
std::vector<Known> matmul_blocks(const Node &node, const Given &given) {
  const int64_t inputs = whole(node, "K"), outputs = whole(node, "N"), bits = whole(node, "bits"), size = whole(node, "block_size");
  need(inputs > 0 && outputs > 0 && inputs < max_size && outputs < max_size, "MatMulNBits of no size");
  const int64_t blocks = (inputs + size - 1) / size;
  need(blocks < max_size / outputs, "MatMulNBits of no size");
  const bool fine = given[1]->shape == Shape{outputs, blocks, size * bits / 8} && given[2]->shape == Shape{outputs * blocks} && given[3]->shape == Shape{outputs * ((blocks * bits + 7) / 8)} &&
                    rank_of(*given[0]) > 0 && given[0]->shape.back() == inputs && given[0]->kind == kind_float && given[1]->kind == kind_uint8 && given[2]->kind == kind_float && given[3]->kind == kind_uint8;
  need(fine, "MatMulNBits of other shapes");
  Shape shape = given[0]->shape;
  shape.back() = outputs;
  return result(kind_float, std::move(shape));
}

std::vector<Known> layer_norm(const Node &node, const Given &given) {
  const Known &data = *given[0];
  const size_t axis = axis_of(whole(node, "axis", -1), rank_of(data));
  const Shape wanted(data.shape.begin() + static_cast<std::ptrdiff_t>(axis), data.shape.end());
  for (size_t i = 1; i < given.size(); i++) need(given[i]->shape == wanted && given[i]->kind == data.kind, "a norm over another shape");
  return result(data.kind, data.shape);
}
std::vector<Known> batch_norm(const Node &, const Given &given) {
  const Known &data = *given[0];
  need(rank_of(data) > 1, "a batch norm of another shape");
  for (size_t i = 1; i < given.size(); i++) need(given[i]->shape == Shape{data.shape[1]}, "a batch norm of another shape");
  return result(data.kind, data.shape);
}

std::vector<Known> conv(const Node &node, const Given &given) {
  const Shape &shape = given[0]->shape, &weights = given[1]->shape;
  const Shape &kernel = list(node, "kernel_shape"), &strides = list(node, "strides"), &dilations = list(node, "dilations"), &pads = list(node, "pads");
  bool fits = shape.size() == 4 && weights.size() == 4 && weights[1] == shape[1] && kernel.size() == 2 && kernel[0] == weights[2] && kernel[1] == weights[3] && strides.size() == 2 && dilations.size() == 2 &&
              pads == Shape(4, 0);
  for (const Shape *all : {&shape, &kernel, &strides, &dilations})
    for (const int64_t size : *all) fits = fits && size > 0 && size <= max_size;
  need(fits && (given.size() < 3 || given[2]->shape == Shape{weights[0]}), "a Conv of shapes that do not go together");
  Shape after = {shape[0], weights[0]};
  for (size_t i = 0; i < 2; i++) {
    need(kernel[i] == 1 || dilations[i] <= max_size / kernel[i], "a Conv beyond all bounds");
    const int64_t rest = shape[2 + i] - dilations[i] * (kernel[i] - 1) - 1;
    need(rest >= 0, "a Conv that gives nothing");
    after.push_back(rest / strides[i] + 1);
  }
  return result(given[0]->kind, std::move(after));
}

std::vector<Known> stft(const Node &, const Given &given) {
  const Shape &shape = given[0]->shape;
  const int64_t step = scalar(*given[1]), size = scalar(*given[3]);
  need(shape.size() == 2 && shape[0] == 1 && step > 0 && size > 0 && size <= shape[1] && given[2]->shape == Shape{size}, "an STFT of sizes that do not go together");
  return result(given[0]->kind, {1, 1 + (shape[1] - size) / step, size / 2 + 1, 2});
}

std::vector<Known> attention(const Node &node, const Given &given) {
  const Shape &query = given[0]->shape;
  need((query.size() == 3 || query.size() == 4) && query == given[1]->shape && query == given[2]->shape, "an Attention of several shapes");
  int64_t heads = query[1];
  if (query.size() == 3) {
    heads = whole(node, "q_num_heads");
    need(heads > 0 && heads == whole(node, "kv_num_heads") && query[2] % heads == 0, "an Attention of other heads");
  } else {
    need(!find(node, "q_num_heads"), "heads are stated twice");
  }
  const int64_t rows = query[query.size() - 2];
  const Shape scores = {query[0], heads, rows, rows};
  if (given.size() > 3) {
    const Shape &mask = given[3]->shape;
    need(mask.size() >= 2 && mask.size() <= 4 && mask[mask.size() - 2] == rows && mask.back() == rows && given[3]->kind == kind_bool && broadcast(scores, mask) == scores, "a mask of another shape");
  }
  need(product(scores) <= max_scores, "an Attention with too many scores");
  return result(given[0]->kind, query);
}

// Inputs, attributes, and the law of shapes; as the table of docs/bundle.md. An attribute: name, kind, and the whole
// numbers or texts that it may be; "?" behind the name: it may be absent.
struct Rule {
  std::string name;
  char kind;
  std::vector<int64_t> numbers = {};
  std::vector<std::string> texts = {};
};
struct Operator {
  std::function<std::vector<Known>(const Node &, const Given &)> law;
  size_t least = 1, most = 1;
  std::vector<Rule> attributes = {};
};

const std::map<std::string, Operator> &operators() {
  static const std::map<std::string, Operator> table = {
      {"Add", {arithmetic, 2, 2}},
      {"Attention", {attention, 3, 4, {{"q_num_heads?", 'i'}, {"kv_num_heads?", 'i'}, {"is_causal?", 'i', {0}}, {"softcap?", 'f', {0}}, {"qk_matmul_output_mode?", 'i', {0}}}}},
      {"BatchNormalization", {batch_norm, 5, 5, {{"epsilon", 'f'}, {"momentum?", 'f'}}}},
      {"Cast", {cast, 1, 1, {{"to", 'i', {kind_float, kind_int32, kind_int64, kind_bool, kind_float16, kind_double}}}}},
      {"Concat", {concat, 1, 16, {{"axis", 'i'}}}},
      {"Conv", {conv, 2, 3, {{"auto_pad?", 's', {}, {"NOTSET"}}, {"dilations", 'l'}, {"group?", 'i', {1}}, {"kernel_shape", 'l'}, {"pads", 'l'}, {"strides", 'l'}}}},
      {"Div", {arithmetic, 2, 2}},
      {"DynamicQuantizeLinear", {quantize}},
      {"Expand", {expand, 2, 2}},
      {"Gather", {gather, 2, 2, {{"axis?", 'i'}}}},
      {"Gelu", {same, 1, 1, {{"approximate?", 's', {}, {"none"}}}}},
      {"LayerNormalization", {layer_norm, 3, 3, {{"axis?", 'i'}, {"epsilon?", 'f'}, {"stash_type?", 'i', {1}}}}},
      {"Less", {arithmetic, 2, 2}},
      {"Log", {same}},
      {"MatMul", {matmul, 2, 2}},
      {"MatMulInteger", {matmul_integer, 3, 3}},
      {"Max", {arithmetic, 2, 2}},
      {"Mul", {arithmetic, 2, 2}},
      {"Not", {same}},
      {"Or", {arithmetic, 2, 2}},
      {"Pad", {pad, 2, 2, {{"mode", 's', {}, {"constant", "reflect"}}}}},
      {"Range", {range, 3, 3}},
      {"ReduceMax", {reduce, 1, 1, {{"keepdims?", 'i', {0, 1}}}}},
      {"ReduceSum", {reduce, 2, 2, {{"keepdims?", 'i', {0, 1}}}}},
      {"Reshape", {reshape, 2, 2, {{"allowzero?", 'i', {0, 1}}}}},
      {"STFT", {stft, 4, 4, {{"onesided?", 'i', {1}}}}},
      {"Shape", {shape_of, 1, 1, {{"start?", 'i'}, {"end?", 'i'}}}},
      {"Slice", {slice, 4, 5}},
      {"Split", {split, 1, 1, {{"axis?", 'i'}, {"num_outputs", 'i'}}}},
      {"Sqrt", {same}},
      {"Squeeze", {squeeze, 1, 2}},
      {"Sub", {arithmetic, 2, 2}},
      {"Transpose", {transpose, 1, 1, {{"perm", 'l'}}}},
      {"Unsqueeze", {unsqueeze, 2, 2}},
      {"com.microsoft.MatMulNBits", {matmul_blocks, 4, 4, {{"K", 'i'}, {"N", 'i'}, {"bits", 'i', {4, 8}}, {"block_size", 'i', {16, 32, 64, 128, 256}}, {"accuracy_level?", 'i', {0, 1, 2, 3, 4}}}}},
  };
  return table;
}

bool allows(const Rule &rule, const Attribute &value) {
  if (rule.kind != value.kind) return false;
  if (!rule.texts.empty()) return std::count(rule.texts.begin(), rule.texts.end(), value.text) > 0;
  if (rule.numbers.empty()) return true;
  if (value.kind == 'f') return value.real == 0.0f;
  return std::count(rule.numbers.begin(), rule.numbers.end(), value.number) > 0;
}

}  // namespace

std::vector<Known> outputs_of(const Node &node, const Given &given) {
  const auto found = operators().find(node.op);
  if (found == operators().end()) fail("it is none of the operators that graphs of a bundle have");
  const Operator &op = found->second;
  need(given.size() >= op.least && given.size() <= op.most, "another number of inputs");
  size_t known = 0;
  for (const Rule &rule : op.attributes) {
    const bool optional = rule.name.back() == '?';
    const auto value = node.attributes.find(optional ? rule.name.substr(0, rule.name.size() - 1) : rule.name);
    const bool there = value != node.attributes.end();
    need(there ? allows(rule, value->second) : optional, "an attribute is missing, or not among those that graphs of a bundle have");
    known += there;
  }
  need(known == node.attributes.size(), "an attribute is not among those that graphs of a bundle have");
  std::vector<Known> outputs = op.law(node, given);
  need(outputs.size() == node.outputs.size(), "another number of outputs");
  for (const Known &output : outputs)
    for (const int64_t size : output.shape) need(size <= max_size, "a size beyond all bounds");
  return outputs;
}

double work_of(const Node &node, const Given &given, const std::vector<Known> &outputs) {
  double written = 0;
  for (const Known &output : outputs) written += static_cast<double>(product(output.shape));
  if (node.op.compare(0, 6, "MatMul") == 0 || node.op.compare(0, 20, "com.microsoft.MatMul") == 0) return written * static_cast<double>(given[0]->shape.back());
  if (node.op == "Conv") return written * static_cast<double>(product({given[1]->shape.begin() + 1, given[1]->shape.end()}));
  if (node.op == "Attention") return static_cast<double>(product(given[0]->shape)) * static_cast<double>(given[1]->shape[given[1]->shape.size() - 2]) * 2;
  return written * (node.op == "STFT" ? 32 : 1);
}

}  // namespace dasheng
