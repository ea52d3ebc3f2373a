// An opened bundle: the parts, when each of them is in memory, and what they do together.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "dasheng_edge.h"
#include "decoder.h"
#include "hearing.h"
#include "prompt.h"

namespace dasheng {

struct Clip {
  Rows embeddings;
  double audio_s = 0, hear_ms = 0;
};

struct Answer {
  std::string text, warning;
  const char *end = "";
  size_t tokens = 0, prompt_tokens = 0, audio_tokens = 0;
  double prefill_ms = 0, decode_ms = 0;
};

class Bundle {
 public:
  Bundle(const std::string &folder, const dasheng_edge_options &options);
  Clip hear(const float *samples, size_t count);
  Answer ask(const Clip &clip, const char *prompt, int64_t max_new_tokens, const std::function<bool(const std::string &)> &on_text);
  Rows embed(const float *samples, size_t count);
  bool verify(const std::function<void(const dasheng_edge_seam &)> &on_seam);

  // What the last call of each kind gave, for callers in C.
  Answer last_answer;
  Rows last_embedding;
  std::vector<float> last_mean;

 private:
  const Manifest &decoding() const;  // fails where there is no decoder
  Hearing &hearing();
  Decoder &decoder();
  const Prompts &prompts();
  std::string folder_;
  bool low_memory_;
  int threads_;
  Manifest manifest_;
  std::unique_ptr<Hearing> hearing_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<Prompts> prompts_;
};

}  // namespace dasheng
