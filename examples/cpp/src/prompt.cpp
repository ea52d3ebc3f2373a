#include "prompt.h"

#include <algorithm>

#include "error.h"
#include "json.h"

namespace dasheng {
namespace {

constexpr int32_t audio_mark = -1;
constexpr size_t max_text_bytes = 1 << 20;

struct Combining {
  uint32_t first, last;
  int kind;
};
const Combining combining[] = {
#include "unicode_nfc.inc"
};

bool is_blank(uint32_t c) { return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x1f) || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000; }

}  // namespace

bool is_nfc(const std::string &text) {
  int before = 0;
  for (size_t at = 0; at < text.size();) {
    uint32_t character = 0;
    at += std::max<size_t>(utf8_length(text, at, &character), 1);
    int kind = 0;
    for (const Combining &one : combining)
      if (character >= one.first && character <= one.last) kind = one.kind;
    if (kind == 255 || (kind != 0 && before > kind)) return false;
    before = kind;
  }
  return true;
}

Prompts::Prompts(std::vector<int32_t> ids, const std::optional<PromptProgram> &program, const PromptFacts &facts, const Decoder &decoder) : facts_(facts), decoder_(decoder), ids_(std::move(ids)), program_(program) {
  for (const int32_t id : ids_)
    if (id != audio_mark && (id < 0 || id >= decoder.vocabulary())) fail("golden.npz: the default prompt has token ", id, ", the vocabulary ", decoder.vocabulary(), "; export the bundle again");
  if (std::count(ids_.begin(), ids_.end(), audio_mark) != 1 || ids_.back() == audio_mark) fail("golden.npz: the default prompt has not one place for audio with something behind it; export the bundle again");
  if (!program_ || !program_->standard) return;
  const Question question = made(*program_->standard, "");
  std::vector<int32_t> stated(question.before);
  stated.push_back(audio_mark), stated.insert(stated.end(), question.after.begin(), question.after.end());
  if (stated != ids_) fail("the manifest's default prompt is not that of golden.npz; run `dasheng-edge upgrade` on the bundle");
}

Question Prompts::made(const std::vector<PromptPart> &parts, const std::string &text) const {
  Question question;
  std::vector<llama_token> *side = &question.before;
  for (const PromptPart &part : parts) {
    const std::vector<llama_token> tokens = part.kind == PromptPart::Kind::prompt ? decoder_.tokenize(part.prefix + text + part.suffix) : part.ids;
    for (const llama_token token : tokens)
      if (token >= decoder_.vocabulary()) fail("the manifest's prompts have token ", token, ", the vocabulary ", decoder_.vocabulary(), "; export the bundle again");
    side->insert(side->end(), tokens.begin(), tokens.end());
    if (part.kind == PromptPart::Kind::audio) side = &question.after;
  }
  return question;
}

Question Prompts::standard() const {
  const auto place = std::find(ids_.begin(), ids_.end(), audio_mark);
  return {{ids_.begin(), place}, {place + 1, ids_.end()}};
}

Question Prompts::asking(const std::string &text) const {
  uint32_t first = 0, last = 0;
  if (!is_utf8(text) || text.size() > max_text_bytes) fail("the prompt is not UTF-8, or has more than ", max_text_bytes, " bytes; give another");
  utf8_length(text, 0, &first);
  for (size_t at = 0; at < text.size();) at += utf8_length(text, at, &last);
  if (text.empty() || is_blank(first) || is_blank(last)) fail("the prompt is empty, or begins or ends with white space, which some templates strip; give it without");
  if (!is_nfc(text)) fail("the prompt holds combining characters; give it in Unicode's form NFC, with composed characters");
  if (text == facts_.prompt) return standard();
  if (program_ && program_->own) {
    for (const PromptPart &part : *program_->own)
      if (!is_nfc(part.prefix + text + part.suffix)) fail("the prompt and what stands around it are not in Unicode's form NFC; give another");
    return made(*program_->own, text);
  }
  // Runs of text between control tokens; the one that holds the default text, once, takes the user's instead.
  Question question;
  std::vector<llama_token> run;
  std::vector<llama_token> *side = &question.before;
  size_t places = 0;
  const auto end_run = [&] {
    std::string bytes = decoder_.bytes_of(run);
    if (decoder_.tokenize(bytes) != run) places += 2;  // no run of text that this tokenizer makes
    for (size_t at = bytes.find(facts_.prompt); !facts_.prompt.empty() && at != bytes.npos; at = bytes.find(facts_.prompt, at + text.size())) {
      bytes.replace(at, facts_.prompt.size(), text);
      places++;
    }
    const std::vector<llama_token> tokens = decoder_.tokenize(bytes);
    side->insert(side->end(), tokens.begin(), tokens.end());
    run.clear();
  };
  for (const int32_t id : ids_) {
    if (id != audio_mark && !decoder_.is_control(id)) {
      run.push_back(id);
      continue;
    }
    end_run();
    if (id == audio_mark)
      side = &question.after;
    else
      side->push_back(id);
  }
  end_run();
  if (places != 1) fail("this bundle's default prompt does not show where another text goes: ask nothing, or use a program that renders chat templates");
  return question;
}

}  // namespace dasheng
