#include "hearing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"

namespace dasheng {
namespace {

constexpr float max_level = 100;  // full scale is 1; more than this are integers kept as floats
constexpr int64_t piece_chunks = 4;  // that the front end is given at a time: its memory grows with the piece

std::vector<std::pair<std::string, Shape>> spectra_of(const FrontEnd &spec, int64_t samples) {
  std::vector<std::pair<std::string, Shape>> wanted = {{"log_mel", {1, spec.n_mels, spec.frames(samples)}}};
  if (spec.n_acoustic) wanted.push_back({"acoustic_mel", {1, spec.n_acoustic, spec.frames(samples)}});
  return wanted;
}

Case front_end_case(const FrontEnd &spec, int64_t samples) { return {{{"waveform", {1, samples}}}, spectra_of(spec, samples), piece_chunks * 1000}; }

// The encoder on so many frames; `valid` of its patches are keys.
Case encoder_case(const FrontEnd &spec, int64_t frames, int64_t valid) {
  const int64_t patches = frames / spec.patch_frames;
  Case run{{{"log_mel", {1, spec.n_mels, frames}}}, {{"patches", {1, patches, -1}}}, 4 * std::max<int64_t>(patches, 16)};
  if (spec.n_acoustic) run.feed.push_back({"acoustic_mel", {1, spec.n_acoustic, frames}});
  const char *name = spec.takes_padding() ? "padded_patches" : "valid_patches";
  run.feed.push_back({name, {1}, true, {!spec.takes_padding() ? valid : spec.pads_last_chunk ? spec.chunk_patches() : patches}});
  if (spec.n_acoustic) run.feed.push_back({"kept_patches", {1}, true, {valid}});
  return run;
}

// Frames [first, last) of a spectrogram [bands, all].
std::vector<float> columns(const std::vector<float> &values, int64_t bands, int64_t all, int64_t first, int64_t last) {
  std::vector<float> part;
  part.reserve(static_cast<size_t>(bands * (last - first)));
  for (int64_t band = 0; band < bands; band++) part.insert(part.end(), values.begin() + band * all + first, values.begin() + band * all + last);
  return part;
}

}  // namespace

Hearing::Hearing(const std::string &folder, const Manifest &manifest, int threads) : spec_(manifest.front_end) {
  const int64_t chunk = spec_.chunk_frames * spec_.hop;
  check_graph(folder, "front_end.onnx", {front_end_case(spec_, spec_.pads_below), front_end_case(spec_, chunk), front_end_case(spec_, piece_chunks * chunk)});
  front_end_ = std::make_unique<Session>(folder, "front_end.onnx", 1);
  const int64_t full = spec_.chunk_frames, patch = spec_.patch_frames;
  // The shortest chunk without a key, one that does not fill its last patch, and the longest.
  const auto shapes = check_graph(folder, "encoder.onnx", {encoder_case(spec_, patch, 0), encoder_case(spec_, full - 1, full / patch - 1), encoder_case(spec_, full, full / patch)});
  width_ = shapes.at("patches")[2];
  if (width_ != manifest.embed_dim) fail("encoder.onnx gives patches of width ", width_, ", the manifest states ", manifest.embed_dim, "; export the bundle again");
  encoder_ = std::make_unique<Session>(folder, "encoder.onnx", threads);
  if (!manifest.decoder) return;
  hidden_ = manifest.decoder->hidden_size;
  const int64_t join = spec_.tokens_patches;
  std::vector<Case> cases;
  for (const int64_t tokens : {int64_t{1}, spec_.chunk_patches()}) cases.push_back({{{"patches", {1, tokens * join, width_}}}, {{"embeddings", {1, tokens, hidden_}}}, 4 * std::max<int64_t>(tokens * join, 16)});
  check_graph(folder, "projector.onnx", cases);
  projector_ = std::make_unique<Session>(folder, "projector.onnx", threads);
}

// Spectra of frames [first, last) of a clip, made of them and `context` frames on both sides.
struct Hearing::Piece {
  std::vector<float> log_mel, acoustic_mel;
  float loudest = -std::numeric_limits<float>::infinity(), run_loudest = loudest;  // of the frames kept, and of all of the run
};

Hearing::Piece Hearing::piece(const std::vector<float> &samples, int64_t first, int64_t last, int64_t context) const {
  const int64_t count = static_cast<int64_t>(samples.size()), frames = spec_.frames(count);
  const int64_t from = std::max<int64_t>(first - context, 0), to = std::min(last + context, frames);
  const int64_t begin = from * spec_.hop, end = to == frames ? count : (to - 1) * spec_.hop;
  std::vector<float> part(samples.begin() + begin, samples.begin() + end);
  const int64_t size = end - begin, all = spec_.frames(size);
  auto spectra = front_end_->run({{"waveform", {1, size}, std::move(part), {}}}, spectra_of(spec_, size));
  Piece piece;
  for (const float value : spectra[0].values) piece.run_loudest = std::max(piece.run_loudest, value);
  piece.log_mel = columns(spectra[0].values, spec_.n_mels, all, first - from, last - from);
  for (const float value : piece.log_mel) piece.loudest = std::max(piece.loudest, value);
  if (spec_.n_acoustic) piece.acoustic_mel = columns(spectra[1].values, spec_.n_acoustic, all, first - from, last - from);
  return piece;
}

Spectra Hearing::spectra(const float *given, size_t count) const {
  if (count == 0) fail("the clip has no samples: give at least one");
  for (size_t i = 0; i < count; i++)
    if (!(std::fabs(given[i]) <= max_level)) fail("sample ", i, " of the clip is not a number from -", max_level, " to ", max_level, "; full scale is 1: divide 16-bit samples by 32768");
  Spectra spectra;
  spectra.samples = spec_.padded(static_cast<int64_t>(count));
  spectra.frames = spec_.frames(spectra.samples);
  std::vector<float> samples(given, given + count);
  samples.resize(static_cast<size_t>(spectra.samples), 0.0f);
  // Half a window on each side is reflected where a piece ends, which is not the clip's end: two frames more are safe.
  const int64_t context = (std::max(spec_.n_fft, spec_.acoustic_n_fft) + 2 * spec_.hop - 1) / (2 * spec_.hop) + 2;
  const int64_t step = (piece_chunks - 1) * spec_.chunk_frames;
  std::vector<Piece> pieces;
  std::vector<int64_t> edges = {0};
  while (spectra.frames - edges.back() > step + spec_.chunk_frames / 2) edges.push_back(edges.back() + step);
  edges.push_back(spectra.frames);
  float loudest = -std::numeric_limits<float>::infinity(), reflected = loudest;
  for (size_t i = 0; i + 1 < edges.size(); i++) {
    pieces.push_back(piece(samples, edges[i], edges[i + 1], context));
    loudest = std::max(loudest, pieces.back().loudest), reflected = std::max(reflected, pieces.back().run_loudest);
  }
  // A bin of reflected samples is louder than all of the clip: its piece may have been limited by it.
  for (size_t i = 0; reflected > loudest && i < pieces.size(); i++)
    if (pieces[i].run_loudest > loudest) pieces[i] = piece(samples, edges[i], edges[i + 1], spec_.chunk_frames / 4 + context);
  const float limit = loudest - static_cast<float>(spec_.top_db);
  for (const bool acoustic : {false, true}) {
    const int64_t bands = acoustic ? spec_.n_acoustic : spec_.n_mels;
    std::vector<float> &all = acoustic ? spectra.acoustic_mel : spectra.log_mel;
    for (int64_t band = 0; band < bands; band++)
      for (size_t i = 0; i < pieces.size(); i++) {
        const std::vector<float> &part = acoustic ? pieces[i].acoustic_mel : pieces[i].log_mel;
        const int64_t width = edges[i + 1] - edges[i];
        for (int64_t frame = 0; frame < width; frame++) {
          const float value = part[static_cast<size_t>(band * width + frame)];
          all.push_back(acoustic || pieces.size() == 1 ? value : std::max(value, limit));
        }
      }
  }
  return spectra;
}

Rows Hearing::patches(const Spectra &spectra) const {
  const int64_t total = spec_.patches(spectra.samples), valid = spec_.valid_patches(spectra.samples), full = spec_.chunk_patches();
  Rows rows;
  rows.count = static_cast<size_t>(total), rows.width = static_cast<size_t>(width_);
  for (int64_t first = 0; first < total; first += full) {
    const int64_t size = std::min(full, total - first), keys = std::clamp<int64_t>(valid - first, 0, size);
    const int64_t from = first * spec_.patch_frames, to = std::min(from + spec_.chunk_frames, spectra.frames);
    std::vector<Tensor> inputs = {{"log_mel", {1, spec_.n_mels, to - from}, columns(spectra.log_mel, spec_.n_mels, spectra.frames, from, to), {}}};
    if (spec_.n_acoustic) inputs.push_back({"acoustic_mel", {1, spec_.n_acoustic, to - from}, columns(spectra.acoustic_mel, spec_.n_acoustic, spectra.frames, from, to), {}});
    if (spec_.takes_padding())
      inputs.push_back({"padded_patches", {1}, {}, {spec_.pads_last_chunk && first > 0 ? full : size}});
    else
      inputs.push_back({"valid_patches", {1}, {}, {keys}});
    if (spec_.n_acoustic) inputs.push_back({"kept_patches", {1}, {}, {first > 0 ? keys : size}});
    const auto got = encoder_->run(std::move(inputs), {{"patches", {1, size, width_}}});
    rows.values.insert(rows.values.end(), got[0].values.begin(), got[0].values.end());
  }
  return rows;
}

Rows Hearing::embeddings(Rows patches) const {
  Rows rows;
  const int64_t join = spec_.tokens_patches, most = spec_.chunk_patches(), total = static_cast<int64_t>(patches.count) / join;
  rows.count = static_cast<size_t>(total), rows.width = static_cast<size_t>(hidden_);
  for (int64_t first = 0; first < total; first += most) {  // groups of whole tokens, which do not see each other
    const int64_t count = std::min(most, total - first);
    const auto begin = patches.values.begin() + first * join * width_;
    auto got = projector_->run({{"patches", {1, count * join, width_}, {begin, begin + count * join * width_}, {}}}, {{"embeddings", {1, count, hidden_}}});
    rows.values.insert(rows.values.end(), got[0].values.begin(), got[0].values.end());
  }
  return rows;
}

}  // namespace dasheng
