#include "manifest.h"

#include <algorithm>
#include <limits>
#include <set>

#include "error.h"
#include "file.h"
#include "json.h"

namespace dasheng {
namespace {

constexpr int64_t newest_schema = 5, max_manifest_bytes = 4 << 20, max_files = 64;
constexpr int64_t any = std::numeric_limits<int64_t>::max();
constexpr double positive = 1e-300;
const Json absent;

// An object of the manifest, whose keys are taken one by one; done() refuses those that nobody asked for.
class Object {
 public:
  Object(const Json &value, std::string name) : value_(value), name_(std::move(name)) {
    if (value.kind != Json::Kind::object) wrong("is no object");
  }
  [[noreturn]] void wrong(const std::string &what) const { fail("the manifest is not valid: ", name_, " ", what, "; export the bundle again"); }
  [[noreturn]] void wrong(const char *key, const std::string &what) const { wrong(std::string("states ") + key + " " + what); }

  const Json *look(const char *key) {
    asked_.insert(key);
    for (const auto &[name, value] : value_.object)
      if (name == key) return &value;
    return nullptr;
  }
  const Json &get(const char *key) {
    const Json *found = look(key);
    if (!found) wrong(std::string("lacks ") + key);
    return *found;
  }
  const Json &get_or_null(const char *key) {
    const Json *found = look(key);
    return found ? *found : absent;
  }
  Object object(const char *key) { return {get(key), name_ + "." + key}; }

  int64_t whole(const char *key, int64_t low, int64_t high, std::optional<int64_t> standard = {}) {
    const Json *found = look(key);
    if (!found && standard) return *standard;
    const Json &number = found ? *found : get(key);
    if (number.kind != Json::Kind::integer || number.integer < low || number.integer > high)
      wrong(key, "as something else than a whole number from " + std::to_string(low) + " to " + std::to_string(high));
    return number.integer;
  }
  double number(const char *key, double low, double high, std::optional<double> standard = {}) {
    const Json *found = look(key);
    if (!found && standard) return *standard;
    const Json &got = found ? *found : get(key);
    if ((got.kind != Json::Kind::integer && got.kind != Json::Kind::real) || !(got.real >= low && got.real <= high))
      wrong(key, "as something else than a number in its range");
    return got.real;
  }
  bool flag(const char *key, bool standard) {
    const Json *found = look(key);
    if (!found) return standard;
    if (found->kind != Json::Kind::boolean) wrong(key, "as something else than true or false");
    return found->boolean;
  }
  std::string text(const char *key, std::optional<std::string> standard = {}) {
    const Json *found = look(key);
    if (!found && standard) return *standard;
    const Json &got = found ? *found : get(key);
    if (got.kind != Json::Kind::text) wrong(key, "as something else than a text");
    return got.text;
  }
  void optional_text(const char *key) {
    if (get_or_null(key).kind != Json::Kind::null) text(key);
  }
  void texts(const char *key) {
    const Json *found = look(key);
    if (!found) return;
    bool fine = found->kind == Json::Kind::list;
    for (const Json &item : found->list) fine = fine && item.kind == Json::Kind::text;
    if (!fine) wrong(key, "as something else than a list of texts");
  }
  template <class Fits>
  void map(const char *key, Fits fits) {
    const Json *found = look(key);
    if (!found) return;
    bool fine = found->kind == Json::Kind::object;
    for (const auto &item : found->object) fine = fine && fits(item.second);
    if (!fine) wrong(key, "as something else than an object with values of its kind");
  }
  void done() const {
    for (const auto &item : value_.object)
      if (!asked_.count(item.first)) wrong("has the unknown key '" + shown(item.first) + "', which may change the numbers");
  }

 private:
  const Json &value_;
  std::string name_;
  std::set<std::string> asked_;
};

bool is_text(const Json &value) { return value.kind == Json::Kind::text; }
bool is_number(const Json &value) { return value.kind == Json::Kind::integer || value.kind == Json::Kind::real; }
bool is_text_or_texts(const Json &value) {
  return is_text(value) || (value.kind == Json::Kind::list && std::all_of(value.list.begin(), value.list.end(), is_text));
}

void check_window(Object &from, int64_t n_fft, int64_t win_length, double f_min, double f_max, double floor) {
  if (n_fft % 2 || win_length > n_fft || f_min >= f_max || floor <= 0) from.wrong("has sizes or frequencies that do not go together");
}

FrontEnd front_end_of(Object from) {
  FrontEnd spec{};
  from.whole("sample_rate_hz", 16000, 16000, 16000);
  spec.n_fft = from.whole("n_fft", 1, 16384, 512);
  const int64_t win_length = from.whole("win_length", 1, 16384, 512);
  spec.hop = from.whole("hop_length", 1, 16384, 160);
  spec.n_mels = from.whole("n_mels", 1, 4096, 64);
  const double f_min = from.number("f_min_hz", 0, 8000, 0.0), f_max = from.number("f_max_hz", positive, 8000, 8000.0);
  check_window(from, spec.n_fft, win_length, f_min, f_max, from.number("log_floor", 0, 1, 1e-10));
  spec.top_db = from.number("top_db", positive, 1000, 120.0);
  spec.patch_frames = from.whole("patch_frames", 1, 1000, 4);
  spec.chunk_frames = from.whole("chunk_frames", 1, 100000, 1008);
  spec.tokens_patches = from.whole("tokens_patches", 1, 1000, 5);
  spec.min_samples = from.whole("min_samples", 1, any, 3200);
  spec.pads_below = from.get_or_null("pads_below").kind == Json::Kind::null ? spec.min_samples : from.whole("pads_below", 1, any);
  if (from.get_or_null("acoustic").kind != Json::Kind::null) {
    Object acoustic = from.object("acoustic");
    spec.n_acoustic = acoustic.whole("n_mels", 1, 4096);
    spec.acoustic_n_fft = acoustic.whole("n_fft", 1, 16384, 1024);
    const int64_t window = acoustic.whole("win_length", 1, 16384, 1024);
    const double low = acoustic.number("f_min_hz", 0, 8000, 0.0), high = acoustic.number("f_max_hz", positive, 8000, 8000.0);
    check_window(acoustic, spec.acoustic_n_fft, window, low, high, acoustic.number("log_floor", 0, 1, 1e-7));
    acoustic.done();
  }
  spec.pads_last_chunk = from.flag("pads_last_chunk", false);
  spec.masks_last_patch = from.flag("masks_last_patch", true);
  from.done();
  const int64_t chunk = spec.chunk_frames * spec.hop, reflected = std::max(spec.n_fft, spec.acoustic_n_fft) / 2;
  if (spec.hop > win_length || spec.chunk_frames % spec.patch_frames || chunk < 4000 || spec.min_samples > chunk || spec.pads_below > spec.min_samples || spec.pads_below <= reflected ||
      spec.tokens(spec.pads_below) < 1)
    from.wrong("has lengths that do not go together");
  return spec;
}

DecoderFacts decoder_of(Object from) {
  DecoderFacts facts;
  facts.arch = from.text("arch");
  facts.hidden_size = from.whole("hidden_size", 1, 1 << 16);
  facts.layers = from.whole("layers", 1, 1 << 10);
  facts.vocab_size = from.whole("vocab_size", 1, 1 << 24);
  facts.context_length = from.whole("context_length", 1, 1 << 24);
  from.whole("parameters", 0, int64_t{1} << 44);
  facts.precision = from.text("precision");
  facts.kv_type = from.text("kv_type", "f16");
  from.done();
  if (facts.arch != "qwen2" && facts.arch != "qwen3") from.wrong("has an unknown arch");
  if (facts.kv_type != "f16" && facts.kv_type != "q8_0" && facts.kv_type != "q4_0") from.wrong("has an unknown kv_type");
  return facts;
}

PromptFacts prompt_of(Object from) {
  PromptFacts facts;
  facts.prompt = from.text("prompt");
  from.optional_text("system");
  from.flag("audio_first", true);
  facts.audio_token = from.text("audio_token", "<|AUDIO|>");
  facts.audio_bos_token = from.text("audio_bos_token", "<|audio_bos|>");
  facts.audio_eos_token = from.text("audio_eos_token", "<|audio_eos|>");
  facts.max_new_tokens = from.whole("max_new_tokens", 1, 1 << 24, 128);
  facts.comfortable_s = from.number("comfortable_s", positive, 86400, 210.0);
  if (from.get_or_null("special_tokens").kind != Json::Kind::null) from.map("special_tokens", is_text_or_texts);
  from.texts("notes");
  if (from.look("sampling")) {
    Object sampling = from.object("sampling");
    Sampling &s = facts.sampling;
    s.temperature = sampling.number("temperature", 0, 1e6, 0.0);
    s.top_k = sampling.whole("top_k", 0, any, 0);
    s.top_p = sampling.number("top_p", positive, 1, 1.0);
    s.min_p = sampling.number("min_p", 0, 1, 0.0);
    s.repetition_penalty = sampling.number("repetition_penalty", positive, 1e6, 1.0);
    s.seed = sampling.whole("seed", 0, any, 0);
    s.no_repeat_ngram_size = sampling.whole("no_repeat_ngram_size", 0, any, 0);
    sampling.done();
  }
  from.done();
  return facts;
}

Tolerances tolerances_of(Object from, bool acoustic, bool decodes) {
  Tolerances limits;
  const auto limit = [&](const char *key, bool wanted) {
    const bool there = from.get_or_null(key).kind != Json::Kind::null;
    if (there != wanted) from.wrong(key, wanted ? "nowhere" : "without the part that it is of");
    return wanted ? from.number(key, 0, 1e6) : 0.0;
  };
  limits.log_mel_db = limit("log_mel_db", true);
  limits.patches_relative = limit("patches_relative", true);
  limits.acoustic_nepers = limit("acoustic_nepers", acoustic);
  limits.embeddings_relative = limit("embeddings_relative", decodes);
  limits.logits_relative = limit("logits_relative", decodes);
  limits.token_margin = limit("token_margin", decodes);
  for (const char *key : {"cuda_patches_relative", "cuda_embeddings_relative"})
    if (from.get_or_null(key).kind != Json::Kind::null) from.number(key, 0, 1e6);
  from.done();
  return limits;
}

void check_provenance(Object from) {
  for (const char *key : {"tool", "checkpoint", "checkpoint_sha256"}) from.text(key);
  from.optional_text("revision");
  from.texts("adapters");
  from.map("versions", is_text);
  from.done();
}

void check_quantization(Object from) {
  from.text("source_sha256");
  from.optional_text("recipe");
  if (from.get_or_null("imatrix").kind != Json::Kind::null) {
    Object imatrix = from.object("imatrix");
    imatrix.text("name"), imatrix.text("sha256"), imatrix.texts("datasets"), imatrix.done();
  }
  if (from.get_or_null("calibration").kind != Json::Kind::null) {
    Object clips = from.object("calibration");
    clips.text("name"), clips.text("sha256"), clips.whole("clips", 0, any), clips.number("audio_s", 0, 1e300), clips.done();
  }
  from.map("tensor_types", is_text), from.map("encoder_matrices", is_text), from.map("smoothed", is_number);
  if (from.get_or_null("embeddings_snr_db").kind != Json::Kind::null) from.number("embeddings_snr_db", -1e300, 1e300);
  if (from.get_or_null("vocabulary").kind != Json::Kind::null) {
    Object cut = from.object("vocabulary");
    cut.whole("tokens_before", 1, 1 << 24), cut.map("corpora", is_text);
    if (cut.get_or_null("held_out_share").kind != Json::Kind::null) cut.number("held_out_share", 0, 1);
    cut.done();
  }
  from.done();
}

std::vector<int32_t> ids_of(const Object &from, const Json &list) {
  std::vector<int32_t> ids;
  if (list.kind != Json::Kind::list) from.wrong("has ids that are no list");
  for (const Json &id : list.list) {
    if (id.kind != Json::Kind::integer || id.integer < 0 || id.integer >= 1 << 24) from.wrong("has an id that is no token");
    ids.push_back(static_cast<int32_t>(id.integer));
  }
  return ids;
}

std::optional<std::vector<PromptPart>> parts_of(const Object &from, const Json &list) {
  std::vector<PromptPart> parts;
  if (list.kind == Json::Kind::null) return {};
  if (list.kind != Json::Kind::list || list.list.size() > 1024) from.wrong("has parts that are no list");
  for (const Json &item : list.list) {
    Object part(item, "program.prompts");
    if (const Json *ids = part.look("ids")) {
      parts.push_back({PromptPart::Kind::ids, ids_of(part, *ids), "", ""});
    } else if (part.look("audio")) {
      if (!part.flag("audio", false)) part.wrong("has a part that is no clip");
      parts.push_back({PromptPart::Kind::audio, {}, "", ""});
    } else {
      if (part.text("text") != "prompt") return {};  // a user's system text, which this program does not ask for
      parts.push_back({PromptPart::Kind::prompt, {}, part.text("prefix"), part.text("suffix")});
    }
    part.done();
  }
  if (std::count_if(parts.begin(), parts.end(), [](const PromptPart &part) { return part.kind == PromptPart::Kind::audio; }) != 1 || parts.back().kind == PromptPart::Kind::audio) from.wrong("has parts without one place for audio and something behind it");
  return parts;
}

// What this program takes of `program`: prompts. It counts and chooses tokens by the rest of the manifest, as it does for
// bundles that have no `program`.
std::optional<PromptProgram> program_of(Object from, bool decodes) {
  for (const char *key : {"inputs", "sampler", "stop_ids", "decoder"}) from.look(key);
  const bool there = from.get_or_null("prompts").kind != Json::Kind::null;
  if (there != decodes) from.wrong("has prompts without a decoder, or a decoder without prompts");
  from.done();
  if (!there) return {};
  PromptProgram program;
  Object prompts = from.object("prompts");
  if (prompts.get("default").kind != Json::Kind::null) {
    Object standard = prompts.object("default");
    program.standard = {{PromptPart::Kind::ids, ids_of(standard, standard.get("before")), "", ""}, {PromptPart::Kind::audio, {}, "", ""}, {PromptPart::Kind::ids, ids_of(standard, standard.get("after")), "", ""}};
    standard.done();
  }
  program.own = parts_of(prompts, prompts.get("own_prompt"));
  parts_of(prompts, prompts.get("without_system")), parts_of(prompts, prompts.get("own_system"));
  program.blanks = prompts.text("prompt_blanks");
  prompts.text("system_blanks");
  if (prompts.text("normalization") != "NFC") prompts.wrong("asks for another form than NFC");
  prompts.done();
  return program;
}

// What keeps a bundle from naming files outside its folder.
bool is_plain_name(const std::string &name) {
  const auto plain = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_'; };
  return !name.empty() && name.size() <= 100 && plain(name[0]) && name != "manifest.json" && std::all_of(name.begin(), name.end(), [&](char c) { return plain(c) || c == '.' || c == '-'; });
}

std::vector<FileFacts> files_of(const Json &value, bool decodes) {
  std::vector<FileFacts> files;
  if (value.kind != Json::Kind::object || value.object.size() > max_files) fail("the manifest is not valid: files is no object of at most ", max_files, " files; export the bundle again");
  for (const auto &[name, facts] : value.object) {
    if (!is_plain_name(name)) fail("the manifest is not valid: '", shown(name), "' is not a plain file name inside the bundle");
    Object file(facts, "files." + name);
    files.push_back({name, file.text("sha256"), file.whole("bytes", 0, int64_t{1} << 50)});
    file.done();
    const std::string &hash = files.back().sha256;
    if (hash.size() != 64 || hash.find_first_not_of("0123456789abcdef") != hash.npos) file.wrong("sha256", "as something else than 64 hexadecimal digits");
  }
  for (const char *name : {"front_end.onnx", "encoder.onnx", "golden.npz", "projector.onnx", "decoder.gguf"}) {
    const bool needed = decodes || files.empty() || (name != std::string("projector.onnx") && name != std::string("decoder.gguf"));
    if (needed && std::none_of(files.begin(), files.end(), [&](const FileFacts &file) { return file.name == name; })) fail("the manifest does not list ", name, "; export the bundle again");
  }
  return files;
}

void check_files(const std::string &folder, const std::vector<FileFacts> &files, bool check_sha256) {
  for (const FileFacts &file : files) {
    const int64_t bytes = file_bytes(folder + "/" + file.name);
    if (bytes < 0) fail(file.name, " is missing, the manifest lists it; copy it or export the bundle again");
    if (bytes != file.bytes) fail(file.name, " has ", bytes, " bytes, expected ", file.bytes, "; it was truncated or replaced: copy it again");
  }
  for (const FileFacts &file : files)  // ONNX Runtime would open it
    if (const std::string data = file.name + ".data"; file.name.size() > 5 && file.name.substr(file.name.size() - 5) == ".onnx" && file_bytes(folder + "/" + data) >= 0 &&
                                                     std::none_of(files.begin(), files.end(), [&](const FileFacts &other) { return other.name == data; }))
      fail(data, " is there, and the manifest does not list it; remove it, or copy the bundle again");
  for (const FileFacts &file : files)
    if (check_sha256 && sha256_of(folder + "/" + file.name) != file.sha256) fail(file.name, " was altered: its SHA-256 is another than the manifest's; copy it again");
}

// `.NAME.partial-XXXXXXXX`, with `.old` behind it or not: what a writer has while it works.
bool is_unfinished(std::string folder) {
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  std::string name = folder.substr(folder.rfind('/') + 1);
  if (name.size() > 4 && name.substr(name.size() - 4) == ".old") name.resize(name.size() - 4);
  const size_t mark = name.rfind(".partial-");
  return name[0] == '.' && mark != name.npos && mark > 1 && name.size() == mark + 17 && name.find_first_not_of("0123456789abcdef", mark + 9) == name.npos;
}

}  // namespace

Manifest read_manifest(const std::string &folder, bool check_sha256) {
  if (is_unfinished(folder)) fail(shown(folder, 200), " is what a writer left that was ended; open the bundle beside it, or make it again");
  const std::string path = folder + "/manifest.json";
  if (const int64_t bytes = file_bytes(path); bytes < 0)
    fail("cannot open bundle ", shown(folder, 200), ": no manifest.json in it; name a folder that `dasheng-edge export` made");
  else if (bytes > max_manifest_bytes)
    fail("the manifest has ", bytes, " bytes, expected at most ", max_manifest_bytes);
  const MappedFile file(path);
  Json content;
  try {
    content = parse_json(file.bytes());
  } catch (const Error &error) {
    fail("cannot read ", shown(path, 200), ": ", error.what(), "; export the bundle again");
  }
  Object top(content, "the top level");
  const Json &version = top.get_or_null("schema_version");
  if (version.kind == Json::Kind::integer && version.integer > newest_schema)
    fail("the bundle has schema version ", version.integer, ", this program reads up to ", newest_schema, "; get a newer one");
  top.whole("schema_version", 1, newest_schema, newest_schema);
  top.text("name"), top.text("variant");
  Manifest manifest;
  manifest.front_end = front_end_of(top.object("front_end"));
  Object encoder = top.object("encoder");
  manifest.embed_dim = encoder.whole("embed_dim", 1, 1 << 16);
  encoder.whole("depth", 1, 1024), encoder.whole("num_heads", 1, 1024), encoder.whole("parameters", 0, int64_t{1} << 44), encoder.text("precision");
  encoder.done();
  const bool counted = top.get_or_null("projector_parameters").kind != Json::Kind::null;
  if (counted) top.whole("projector_parameters", 0, int64_t{1} << 44);
  if (top.get_or_null("decoder").kind != Json::Kind::null) manifest.decoder = decoder_of(top.object("decoder"));
  if (top.get_or_null("prompt").kind != Json::Kind::null) manifest.prompt = prompt_of(top.object("prompt"));
  if (manifest.prompt.has_value() != manifest.decoder.has_value() || (counted && !manifest.decoder)) top.wrong("has a decoder without a prompt, or a part of one without a decoder");
  if (top.get_or_null("program").kind != Json::Kind::null) manifest.program = program_of(top.object("program"), manifest.decoder.has_value());
  manifest.tolerances = tolerances_of(top.object("tolerances"), manifest.front_end.n_acoustic > 0, manifest.decoder.has_value());
  check_provenance(top.object("provenance"));
  if (top.get_or_null("quantization").kind != Json::Kind::null) check_quantization(top.object("quantization"));
  manifest.files = files_of(top.get("files"), manifest.decoder.has_value());
  top.done();
  check_files(folder, manifest.files, check_sha256);
  return manifest;
}

}  // namespace dasheng
