// The decoder in llama.cpp (docs/bundle.md, sections 9 and 10).
#pragma once
#include <llama.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gguf_check.h"
#include "hearing.h"
#include "manifest.h"

namespace dasheng {

// Bytes of tokens, joined, as whole characters of UTF-8; what is none becomes U+FFFD.
class Utf8Pieces {
 public:
  std::string add(const std::string &bytes, bool last = false);  // what became whole

 private:
  std::string held_;
};

class Decoder {
 public:
  Decoder(const std::string &path, const DecoderFacts &facts, int threads, bool low_memory);

  int32_t vocabulary() const { return llama_vocab_n_tokens(vocab_); }
  bool is_control(llama_token token) const { return (llama_vocab_get_attr(vocab_, token) & LLAMA_TOKEN_ATTR_CONTROL) != 0; }
  bool is_end(llama_token token) const { return llama_vocab_is_eog(vocab_, token); }
  std::string token_text(llama_token token) const { return llama_vocab_get_text(vocab_, token); }
  std::string bytes_of(const std::vector<llama_token> &tokens) const;
  std::vector<llama_token> tokenize(const std::string &text) const;  // control tokens in it are plain text

  // Tokens before the audio, its rows, tokens behind it. `reserve`: how many tokens may follow.
  void prefill(const std::vector<llama_token> &before, const Rows &audio, const std::vector<llama_token> &after, int64_t reserve);
  const float *logits();  // of the last row, none of which is NaN or infinite
  // Chooses tokens until one ends the answer, `on_token` says so (false), or there are as many as may be. The result: why.
  const char *answer(const Sampling &sampling, int64_t most, const std::function<bool(llama_token)> &on_token);

 private:
  void make_context(int64_t positions);
  void decode(const llama_token *tokens, const float *rows, size_t count, bool outputs);

  const DecoderFacts &facts_;
  int threads_;
  bool low_memory_;
  GgufSizes sizes_;
  std::unique_ptr<llama_model, void (*)(llama_model *)> model_{nullptr, llama_model_free};
  std::unique_ptr<llama_context, void (*)(llama_context *)> context_{nullptr, llama_free};
  const llama_vocab *vocab_ = nullptr;
  llama_pos past_ = 0;
};

}  // namespace dasheng
