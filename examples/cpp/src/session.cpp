#include "session.h"

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cmath>
#include <cstdlib>
#include <mutex>

#include "error.h"

#ifndef DASHENG_ONNXRUNTIME_NAME
#define DASHENG_ONNXRUNTIME_NAME "libonnxruntime.so"
#endif

namespace dasheng {
namespace {

const OrtApi *load() {
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);  // builds since 1.32 read it when they are loaded
  void *library = nullptr;
  for (const char *name : {DASHENG_ONNXRUNTIME_NAME, "libonnxruntime.so.1", "libonnxruntime.so", "libonnxruntime.dylib"})
    if (!library) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail("ONNX Runtime cannot be loaded (", dlerror(), "): put its library where the system's loader looks, or beside the program");
  const auto base = reinterpret_cast<const OrtApiBase *(*)()>(dlsym(library, "OrtGetApiBase"));
  const OrtApi *api = base ? base()->GetApi(ORT_API_VERSION) : nullptr;
  if (!api) fail("this ONNX Runtime is older than the headers that the program was built with: install version 1.", ORT_API_VERSION, " or later");
  return api;
}

const OrtApi &ort() {
  static const OrtApi *const api = load();  // tried again where it failed
  return *api;
}

void check(OrtStatus *status, const std::string &what) {
  if (!status) return;
  const std::string message = shown(ort().GetErrorMessage(status), 300);
  ort().ReleaseStatus(status);
  fail("ONNX Runtime ", what, ": ", message);
}

OrtEnv &environment() {
  static OrtEnv *const env = [] {
    OrtEnv *made = nullptr;
    check(ort().CreateEnv(ORT_LOGGING_LEVEL_FATAL, "dasheng_edge", &made), "does not start");
    check(ort().DisableTelemetryEvents(made), "does not start");
    return made;
  }();
  return *env;
}

template <class Thing>
using Owned = std::unique_ptr<Thing, void (*)(Thing *)>;
Owned<OrtValue> owned(OrtValue *value) {
  return {value, [](OrtValue *one) { ort().ReleaseValue(one); }};
}

}  // namespace

struct Session::Parts {
  Owned<OrtSession> session{nullptr, [](OrtSession *one) { ort().ReleaseSession(one); }};
  Owned<OrtMemoryInfo> memory{nullptr, [](OrtMemoryInfo *one) { ort().ReleaseMemoryInfo(one); }};
};

Session::Session(const std::string &folder, const std::string &name, int threads) : name_(name), parts_(std::make_unique<Parts>()) {
  OrtEnv &env = environment();
  OrtSessionOptions *made = nullptr;
  check(ort().CreateSessionOptions(&made), "has no options");
  const Owned<OrtSessionOptions> options{made, [](OrtSessionOptions *one) { ort().ReleaseSessionOptions(one); }};
  const std::string what = "cannot load " + name + "; export the bundle again";
  check(ort().SetIntraOpNumThreads(made, threads), what);
  check(ort().SetInterOpNumThreads(made, 1), what);
  check(ort().SetSessionLogSeverityLevel(made, ORT_LOGGING_LEVEL_FATAL), what);
  check(ort().DisableCpuMemArena(made), what);  // lengths vary, and an arena would keep the largest
  check(ort().DisableMemPattern(made), what);
  for (const auto &[key, value] : {std::pair{"session.intra_op.allow_spinning", "1"}, {"session.intra_op.spin_duration_us", "10"}, {"session.force_spinning_stop", "1"}})
    check(ort().AddSessionConfigEntry(made, key, value), what);
  OrtSession *session = nullptr;
  check(ort().CreateSession(&env, (folder + "/" + name).c_str(), made, &session), what);
  parts_->session.reset(session);
  OrtMemoryInfo *memory = nullptr;
  check(ort().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), what);
  parts_->memory.reset(memory);
}

Session::~Session() = default;

std::vector<Tensor> Session::run(std::vector<Tensor> inputs, const std::vector<std::pair<std::string, Shape>> &wanted) const {
  const std::string what = "failed on " + name_;
  std::vector<Owned<OrtValue>> held;
  std::vector<const OrtValue *> given;
  std::vector<const char *> in, out;
  for (Tensor &input : inputs) {
    const bool whole = !input.whole.empty();
    void *data = whole ? static_cast<void *>(input.whole.data()) : input.values.data();
    const size_t bytes = whole ? input.whole.size() * sizeof(int64_t) : input.values.size() * sizeof(float);
    OrtValue *value = nullptr;
    check(ort().CreateTensorWithDataAsOrtValue(parts_->memory.get(), data, bytes, input.shape.data(), input.shape.size(), whole ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value),
          what);
    held.push_back(owned(value));
    given.push_back(value);
    in.push_back(input.name.c_str());
  }
  for (const auto &one : wanted) out.push_back(one.first.c_str());
  std::vector<OrtValue *> got(wanted.size(), nullptr);
  OrtStatus *status = ort().Run(parts_->session.get(), nullptr, in.data(), given.data(), given.size(), out.data(), out.size(), got.data());
  for (OrtValue *value : got) held.push_back(owned(value));
  check(status, what + "; free memory, or try other audio");
  std::vector<Tensor> results;
  for (size_t i = 0; i < wanted.size(); i++) {
    OrtTensorTypeAndShapeInfo *made = nullptr;
    check(ort().GetTensorTypeAndShape(got[i], &made), what);
    const Owned<OrtTensorTypeAndShapeInfo> info{made, [](OrtTensorTypeAndShapeInfo *one) { ort().ReleaseTensorTypeAndShapeInfo(one); }};
    ONNXTensorElementDataType type;
    size_t rank = 0, count = 0;
    check(ort().GetTensorElementType(made, &type), what);
    check(ort().GetDimensionsCount(made, &rank), what);
    Tensor result{wanted[i].first, Shape(rank), {}, {}};
    check(ort().GetDimensions(made, result.shape.data(), rank), what);
    check(ort().GetTensorShapeElementCount(made, &count), what);
    bool fits = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && rank == wanted[i].second.size();
    for (size_t axis = 0; fits && axis < rank; axis++) fits = wanted[i].second[axis] == -1 || wanted[i].second[axis] == result.shape[axis];
    if (!fits) fail(name_, " gives ", wanted[i].first, " of another type or shape than the counting law; export the bundle again");
    void *data = nullptr;
    check(ort().GetTensorMutableData(got[i], &data), what);
    if (count) result.values.assign(static_cast<float *>(data), static_cast<float *>(data) + count);
    for (const float value : result.values)
      if (!std::isfinite(value)) fail(name_, " gives NaN or infinity; if other audio works, this clip is far too loud, else export the bundle again");
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace dasheng
