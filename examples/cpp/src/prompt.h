// What is asked, as tokens before and behind the audio (docs/bundle.md, section 8), without a template engine.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "decoder.h"

namespace dasheng {

struct Question {
  std::vector<llama_token> before, after;
};

// Prompts are made of the manifest's parts. Where it has none, of the ids of the default prompt: a user's text takes the
// place of the default text in them.
class Prompts {
 public:
  Prompts(std::vector<int32_t> ids, const std::optional<PromptProgram> &program, const PromptFacts &facts, const Decoder &decoder);
  Question standard() const;
  Question asking(const std::string &text) const;

 private:
  const PromptFacts &facts_;
  const Decoder &decoder_;
  Question made(const std::vector<PromptPart> &parts, const std::string &text) const;
  std::vector<int32_t> ids_;
  const std::optional<PromptProgram> &program_;
};

// Whether a text, UTF-8, is in Unicode's form NFC for sure: one with combining characters may be, and is not said to be.
bool is_nfc(const std::string &text);

}  // namespace dasheng
