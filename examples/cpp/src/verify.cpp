// The golden vectors, replayed (docs/bundle.md, section 11).
#include <cmath>
#include <limits>

#include "bundle.h"
#include "error.h"
#include "golden.h"

namespace dasheng {
namespace {

constexpr double none = std::numeric_limits<double>::quiet_NaN(), infinite = std::numeric_limits<double>::infinity();

double largest_difference(const std::vector<float> &got, const std::vector<float> &want) {
  if (got.size() != want.size()) return infinite;
  double largest = 0;
  for (size_t i = 0; i < got.size(); i++) {
    const double difference = std::fabs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (!(difference <= largest)) largest = difference;  // NaN, too, and then for good
    if (std::isnan(largest)) return largest;
  }
  return largest;
}

double relative(const std::vector<float> &got, const std::vector<float> &want, bool centred = false) {
  if (got.size() != want.size()) return infinite;
  double got_mean = 0, want_mean = 0, noise = 0, signal = 0;
  for (size_t i = 0; centred && i < got.size(); i++) got_mean += static_cast<double>(got[i]) / static_cast<double>(got.size()), want_mean += static_cast<double>(want[i]) / static_cast<double>(got.size());
  for (size_t i = 0; i < got.size(); i++) {
    const double wanted = static_cast<double>(want[i]) - want_mean, difference = static_cast<double>(got[i]) - got_mean - wanted;
    noise += difference * difference, signal += wanted * wanted;
  }
  return noise == 0 ? 0 : std::sqrt(noise / std::max(signal, std::numeric_limits<double>::min()));
}

bool same_shape(const Array &want, int64_t rows, int64_t columns) { return want.shape == std::vector<int64_t>{rows, columns}; }

}  // namespace

bool Bundle::verify(const std::function<void(const dasheng_edge_seam &)> &on_seam) {
  const Tolerances &limits = manifest_.tolerances;
  const FrontEnd &spec = manifest_.front_end;
  const std::vector<GoldenClip> clips = read_golden(folder_ + "/golden.npz", spec.n_acoustic > 0, manifest_.decoder.has_value());
  bool good = !clips.empty();
  const auto tell = [&](const GoldenClip &clip, const char *seam, double error, double tolerance, const char *unit, const std::string &note = "") {
    good = good && error <= tolerance;
    on_seam({clip.name.c_str(), seam, unit, error, tolerance, note.c_str()});
  };
  std::vector<Rows> heard;
  for (const GoldenClip &clip : clips) {  // all that is heard first: with low memory, the decoder comes when this is gone
    Rows rows;
    const char *seam = "log-mel", *unit = "dB";
    double limit = limits.log_mel_db;
    try {
      Hearing &hearing = this->hearing();
      const Spectra spectra = hearing.spectra(clip.samples.data(), clip.samples.size());
      tell(clip, seam, same_shape(clip.log_mel, spec.n_mels, spectra.frames) ? largest_difference(spectra.log_mel, clip.log_mel.values) : infinite, limit, unit);
      if (spec.n_acoustic)
        tell(clip, "acoustic mel", same_shape(clip.acoustic_mel, spec.n_acoustic, spectra.frames) ? largest_difference(spectra.acoustic_mel, clip.acoustic_mel.values) : infinite, limits.acoustic_nepers, "nepers");
      seam = "patches", unit = "relative", limit = limits.patches_relative;
      rows = hearing.patches(spectra);
      tell(clip, seam, same_shape(clip.patches, static_cast<int64_t>(rows.count), static_cast<int64_t>(rows.width)) ? relative(rows.values, clip.patches.values) : infinite, limit, unit);
      if (manifest_.decoder) {
        seam = "embeddings", limit = limits.embeddings_relative;
        rows = hearing.embeddings(std::move(rows));
        tell(clip, seam, same_shape(clip.embeddings, static_cast<int64_t>(rows.count), static_cast<int64_t>(rows.width)) ? relative(rows.values, clip.embeddings.values) : infinite, limit, unit);
      }
    } catch (const Error &error) {
      tell(clip, seam, none, limit, unit, error.what());
      rows = {};
    }
    heard.push_back(std::move(rows));
  }
  if (!manifest_.decoder) return good;
  for (size_t i = 0; i < clips.size(); i++) {
    const GoldenClip &clip = clips[i];
    if (heard[i].values.empty()) continue;
    const char *seam = "prompt", *unit = "tokens";
    double limit = 0;
    try {
      const Question question = prompts().standard();
      std::vector<llama_token> ids = question.before;
      ids.push_back(-1);
      ids.insert(ids.end(), question.after.begin(), question.after.end());
      tell(clip, seam, ids == clip.prompt ? 0 : infinite, limit, unit);
      seam = "first logits", unit = "relative", limit = limits.logits_relative;
      decoder_->prefill(question.before, heard[i], question.after, static_cast<int64_t>(clip.tokens.size()));
      const float *row = decoder_->logits();
      tell(clip, seam, relative({row, row + decoder_->vocabulary()}, clip.logits, true), limit, unit);
      seam = "greedy tokens", unit = "logits", limit = limits.token_margin;
      std::vector<llama_token> tokens;
      const char *end = decoder_->answer({}, static_cast<int64_t>(clip.tokens.size()), [&](llama_token token) {
        tokens.push_back(token);
        return true;
      });
      // The token that ends the reference's answer is no part of this one.
      const bool ended = tokens.size() + 1 == clip.tokens.size() && end == std::string("end") && clip.tokens.back() >= 0 && clip.tokens.back() < decoder_->vocabulary() && decoder_->is_end(clip.tokens.back());
      double margin = tokens.size() == clip.tokens.size() || ended ? 0 : infinite;
      const size_t most = std::min({tokens.size(), clip.tokens.size(), clip.margins.size()});
      for (size_t k = 0; k <= most; k++)
        if (k < most ? tokens[k] != clip.tokens[k] : margin > 0 && k < std::min(clip.tokens.size(), clip.margins.size())) {
          margin = static_cast<double>(clip.margins[k]);
          break;
        }
      tell(clip, seam, margin, limit, unit);
    } catch (const Error &error) {
      tell(clip, seam, none, limit, unit, error.what());
    }
  }
  return good;
}

}  // namespace dasheng
