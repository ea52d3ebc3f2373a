#include "bundle.h"

#include <algorithm>
#include <chrono>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "error.h"
#include "golden.h"

namespace dasheng {
namespace {

constexpr int max_threads = 512;

int processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void give_memory_back() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

class Watch {
 public:
  double ms() const { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

Bundle::Bundle(const std::string &folder, const dasheng_edge_options &options)
    : folder_(folder), low_memory_(options.low_memory != 0), threads_(options.threads ? options.threads : std::min(processors(), max_threads)), manifest_(read_manifest(folder, !options.skip_sha256)) {
  if (options.threads < 0 || options.threads > max_threads) fail("threads is ", options.threads, ", expected 0 (all) to ", max_threads);
  if (low_memory_) return;
  hearing();
  if (manifest_.decoder) prompts();
  give_memory_back();  // what loading took
}

const Manifest &Bundle::decoding() const {
  if (!manifest_.decoder) fail("this bundle holds an encoder only and cannot answer in words; embed with it, or take a MiDashengLM bundle");
  return manifest_;
}

Hearing &Bundle::hearing() {
  if (low_memory_ && decoder_) {
    prompts_.reset(), decoder_.reset();
    give_memory_back();
  }
  if (!hearing_) hearing_ = std::make_unique<Hearing>(folder_, manifest_, threads_);
  return *hearing_;
}

Decoder &Bundle::decoder() {
  const Manifest &manifest = decoding();
  if (low_memory_ && hearing_) {
    hearing_.reset();
    give_memory_back();
  }
  if (!decoder_) decoder_ = std::make_unique<Decoder>(folder_ + "/decoder.gguf", *manifest.decoder, threads_, low_memory_);
  return *decoder_;
}

const Prompts &Bundle::prompts() {
  Decoder &decoder = this->decoder();
  if (!prompts_) prompts_ = std::make_unique<Prompts>(read_default_prompt(folder_ + "/golden.npz"), manifest_.program, *manifest_.prompt, decoder);
  return *prompts_;
}

Clip Bundle::hear(const float *samples, size_t count) {
  decoding();
  Clip clip;
  Hearing &hearing = this->hearing();
  const Watch watch;
  clip.embeddings = hearing.embeddings(hearing.patches(hearing.spectra(samples, count)));
  clip.hear_ms = watch.ms();
  clip.audio_s = static_cast<double>(count) / DASHENG_EDGE_SAMPLE_RATE;
  return clip;
}

Answer Bundle::ask(const Clip &clip, const char *prompt, int64_t max_new_tokens, const std::function<bool(const std::string &)> &on_text) {
  const PromptFacts &facts = *decoding().prompt;
  if (max_new_tokens < 0) fail("max_new_tokens is ", max_new_tokens, ", expected 1 or more, or 0 for what the bundle says");
  const int64_t most = max_new_tokens ? max_new_tokens : facts.max_new_tokens;
  const Prompts &prompts = this->prompts();
  const Question question = prompt ? prompts.asking(prompt) : prompts.standard();
  Answer answer;
  answer.audio_tokens = clip.embeddings.count, answer.prompt_tokens = question.before.size() + question.after.size();
  if (clip.audio_s > facts.comfortable_s) answer.warning = "the clip has " + std::to_string(static_cast<int64_t>(clip.audio_s)) + " s, and this model's answers get worse beyond " + std::to_string(static_cast<int64_t>(facts.comfortable_s)) + " s: cut it";
  const Watch prefill;
  decoder_->prefill(question.before, clip.embeddings, question.after, most);
  answer.prefill_ms = prefill.ms();
  const Watch decode;
  Utf8Pieces pieces;
  answer.end = decoder_->answer(facts.sampling, most, [&](llama_token token) {
    answer.tokens++;
    const std::string piece = pieces.add(decoder_->bytes_of({token}));
    answer.text += piece;
    return piece.empty() || !on_text || on_text(piece);
  });
  const std::string rest = pieces.add("", true);
  answer.text += rest;
  if (!rest.empty() && on_text && answer.end != std::string("callback")) on_text(rest);
  answer.decode_ms = decode.ms();
  if (answer.end == std::string("loop")) answer.warning += std::string(answer.warning.empty() ? "" : "; ") + "the answer went round in a loop, and was ended";
  return answer;
}

Rows Bundle::embed(const float *samples, size_t count) {
  const Hearing &hearing = this->hearing();
  Rows rows = hearing.patches(hearing.spectra(samples, count));
  const size_t own = static_cast<size_t>(std::max<int64_t>(1, manifest_.front_end.patches(static_cast<int64_t>(count))));
  rows.count = std::min(rows.count, own);  // without those that padding added
  rows.values.resize(rows.count * rows.width);
  return rows;
}

}  // namespace dasheng
