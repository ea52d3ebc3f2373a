#include "decoder.h"

#include <dlfcn.h>
#include <ggml-backend.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <mutex>

#include "error.h"
#include "json.h"

namespace dasheng {
namespace {

constexpr int64_t batch_rows = 512, low_memory_batch_rows = 64;
constexpr int penalty_window = 64;
constexpr size_t loop_tokens = 128, max_phrase = 64, min_times = 4;

std::mutex log_mutex;
std::string last_line;  // of llama.cpp's log, which prints nothing

// A llama.cpp that has its code for each processor in a file of its own loads the best one, if it is told where they are.
void load_processors() {
  Dl_info self{};
  if (ggml_backend_reg_count() || !dladdr(reinterpret_cast<const void *>(&load_processors), &self) || !self.dli_fname) return;
  const std::string file = self.dli_fname;
  const size_t slash = file.rfind('/');
  ggml_backend_load_all_from_path(slash == std::string::npos ? "." : file.substr(0, slash).c_str());
  if (!ggml_backend_reg_count()) fail("llama.cpp has no code for this processor: put its libggml-cpu-*.so beside libdasheng_edge");
}

void start_llama() {
  static const bool started = [] {
    llama_log_set(
        [](ggml_log_level level, const char *line, void *) {
          const std::lock_guard<std::mutex> lock(log_mutex);
          if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT) last_line = line;
        },
        nullptr);
    load_processors();
    llama_backend_init();
    return true;
  }();
  (void)started;
}
std::string said() {
  const std::lock_guard<std::mutex> lock(log_mutex);
  return shown(last_line.substr(0, last_line.find('\n')), 200);
}

// Bytes that may be allocated; llama.cpp clears what it allocates, and the system ends programs that take too much.
double available_bytes() {
  double kilobytes = 0;
  if (std::FILE *file = std::fopen("/proc/meminfo", "r")) {
    char line[256];
    while (std::fgets(line, sizeof line, file))
      if (std::sscanf(line, "MemAvailable: %lf", &kilobytes) == 1) break;
    std::fclose(file);
  }
  return kilobytes ? kilobytes * 1024 : 1e18;
}

// How many tokens the phrase has that an answer ends with over and over; 0 if it does not.
size_t phrase_of_loop(const std::vector<llama_token> &tokens) {
  for (size_t size = 1; size <= max_phrase; size++) {
    const size_t length = std::max(loop_tokens, min_times * size);
    if (length > tokens.size()) return 0;
    if (std::equal(tokens.end() - static_cast<std::ptrdiff_t>(length - size), tokens.end(), tokens.end() - static_cast<std::ptrdiff_t>(length))) return size;
  }
  return 0;
}

// Chooses tokens; one for each answer, since what it chose before counts.
class Sampler {
 public:
  Sampler(const Sampling &sampling, int32_t vocabulary) : ngram_(static_cast<size_t>(std::min<int64_t>(sampling.no_repeat_ngram_size, 1 << 24))) {
    if (sampling.temperature == 0 && sampling.repetition_penalty == 1) return;  // the largest logit
    chain_.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    const auto add = [&](llama_sampler *one) { llama_sampler_chain_add(chain_.get(), one); };
    if (sampling.repetition_penalty != 1) add(llama_sampler_init_penalties(vocabulary, penalty_window, static_cast<float>(sampling.repetition_penalty), 0.0f, 0.0f));
    if (sampling.temperature == 0) {
      add(llama_sampler_init_greedy());
      return;
    }
    add(llama_sampler_init_temp(static_cast<float>(sampling.temperature)));
    add(llama_sampler_init_top_k(static_cast<int32_t>(std::min<int64_t>(sampling.top_k, vocabulary))));
    add(llama_sampler_init_top_p(static_cast<float>(sampling.top_p), 1));
    add(llama_sampler_init_min_p(static_cast<float>(sampling.min_p), 1));
    add(llama_sampler_init_dist(static_cast<uint32_t>(sampling.seed % 0xFFFFFFFF)));  // that very value asks for a random seed
  }

  llama_token next(std::vector<float> logits, const std::vector<llama_token> &answer) {
    if (ngram_ > 0 && answer.size() >= ngram_ - 1) {  // tokens that would end a run that the answer holds already
      const auto lead = answer.end() - static_cast<std::ptrdiff_t>(ngram_ - 1);
      for (auto at = answer.begin(); static_cast<size_t>(answer.end() - at) >= ngram_; ++at)
        if (std::equal(lead, answer.end(), at)) logits[static_cast<size_t>(at[static_cast<std::ptrdiff_t>(ngram_ - 1)])] = -INFINITY;
    }
    if (!chain_) return static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    std::vector<llama_token_data> candidates(logits.size());
    for (size_t i = 0; i < logits.size(); i++) candidates[i] = {static_cast<llama_token>(i), logits[i], 0.0f};
    llama_token_data_array all = {candidates.data(), candidates.size(), -1, false};
    llama_sampler_apply(chain_.get(), &all);
    if (all.selected < 0 || static_cast<size_t>(all.selected) >= all.size) fail("no token can be chosen: check the sampling that the bundle states");
    const llama_token token = all.data[all.selected].id;
    llama_sampler_accept(chain_.get(), token);
    return token;
  }

 private:
  size_t ngram_;
  std::unique_ptr<llama_sampler, void (*)(llama_sampler *)> chain_{nullptr, llama_sampler_free};
};

}  // namespace

std::string Utf8Pieces::add(const std::string &bytes, bool last) {
  held_ += bytes;
  std::string whole;
  size_t at = 0;
  while (at < held_.size()) {
    if (const size_t length = utf8_length(held_, at)) {
      whole.append(held_, at, length);
      at += length;
      continue;
    }
    // As Python's decoder: what began as a character and breaks off is one U+FFFD, and waits here for its rest.
    const unsigned char first = static_cast<unsigned char>(held_[at]);
    const size_t wanted = first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 1;
    size_t length = 1;
    for (; length < wanted && at + length < held_.size(); length++) {
      const unsigned char next = static_cast<unsigned char>(held_[at + length]);
      const unsigned char low = length > 1 ? 0x80 : first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80, high = length > 1 ? 0xbf : first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
      if (next < low || next > high) break;
    }
    if (!last && length < wanted && at + length == held_.size()) break;
    whole += "\xef\xbf\xbd";
    at += length;
  }
  held_.erase(0, at);
  return whole;
}

Decoder::Decoder(const std::string &path, const DecoderFacts &facts, int threads, bool low_memory) : facts_(facts), threads_(threads), low_memory_(low_memory), sizes_(check_gguf(path, facts)) {
  start_llama();
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  params.load_mode = LLAMA_LOAD_MODE_MMAP;  // weights stay in the pages of the file, which the system may drop
  params.use_extra_bufts = false;           // no packed copies of them
  params.progress_callback = [](float, void *) { return true; };  // without one, llama.cpp prints dots
  model_.reset(llama_model_load_from_file(path.c_str(), params));
  if (!model_) fail("llama.cpp cannot load decoder.gguf (", said(), "); free memory, or export the bundle again");
  vocab_ = llama_model_get_vocab(model_.get());
  if (llama_model_n_embd_inp(model_.get()) != facts.hidden_size || vocabulary() != facts.vocab_size) fail("decoder.gguf takes rows of width ", llama_model_n_embd_inp(model_.get()), ", the manifest states ", facts.hidden_size, "; export the bundle again");
}

std::string Decoder::bytes_of(const std::vector<llama_token> &tokens) const {
  std::string bytes, piece(512, '\0');
  for (const llama_token token : tokens) {
    int32_t size = llama_token_to_piece(vocab_, token, piece.data(), static_cast<int32_t>(piece.size()), 0, false);
    if (size < 0) {
      piece.resize(static_cast<size_t>(-static_cast<int64_t>(size)));
      size = llama_token_to_piece(vocab_, token, piece.data(), static_cast<int32_t>(piece.size()), 0, false);
    }
    bytes.append(piece, 0, static_cast<size_t>(std::max(size, 0)));
  }
  return bytes;
}

std::vector<llama_token> Decoder::tokenize(const std::string &text) const {
  std::vector<llama_token> tokens(text.size() + 1);
  const int32_t count = llama_tokenize(vocab_, text.data(), static_cast<int32_t>(text.size()), tokens.data(), static_cast<int32_t>(tokens.size()), false, false);
  if (count < 0) fail("llama.cpp cannot tokenize the prompt; shorten it");
  tokens.resize(static_cast<size_t>(count));
  return tokens;
}

void Decoder::make_context(int64_t positions) {
  const int64_t most = std::min(facts_.context_length, sizes_.context_length);
  if (positions > most) fail("prompt, audio and answer need ", positions, " positions, this model has ", most, "; give shorter audio, or ask for fewer new tokens");
  if (context_ && llama_n_ctx(context_.get()) >= positions && !low_memory_) return;
  context_.reset();
  const bool exact = facts_.precision == "F32" && facts_.kv_type == "f16" && !low_memory_;  // to be held against the reference
  std::string kind = exact ? "f32" : facts_.kv_type;
  if (low_memory_ && kind == "f16") kind = "q8_0";
  const double width = kind == "f32" ? 4 : kind == "f16" ? 2 : kind == "q8_0" ? 34.0 / 32 : 18.0 / 32;
  const double bytes = static_cast<double>(positions) * static_cast<double>(facts_.layers) * 2 * static_cast<double>(sizes_.kv_width) * width;
  if (bytes > available_bytes()) fail("keys and values of ", positions, " positions need ", static_cast<int64_t>(bytes / 1e6), " MB, which are not free; give shorter audio, or ask for fewer new tokens");
  llama_context_params params = llama_context_default_params();
  // A few sizes of context, so that clips of about one length share one; no more than asked for where memory is short.
  params.n_ctx = static_cast<uint32_t>(low_memory_ ? positions : std::min(most, (positions + 255) / 256 * 256));
  params.n_batch = params.n_ubatch = static_cast<uint32_t>(low_memory_ ? low_memory_batch_rows : batch_rows);
  params.n_seq_max = 1, params.n_outputs_max = 1;
  params.n_threads = params.n_threads_batch = threads_;
  params.offload_kqv = params.op_offload = false, params.no_perf = true;
  params.type_k = params.type_v = kind == "f32" ? GGML_TYPE_F32 : kind == "f16" ? GGML_TYPE_F16 : kind == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_Q4_0;
  if (kind == "f32") params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  if (kind == "q8_0" || kind == "q4_0") params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  context_.reset(llama_init_from_model(model_.get(), params));
  if (!context_) fail("llama.cpp cannot make a context of ", positions, " positions (", said(), "); free memory, or give shorter audio");
}

void Decoder::decode(const llama_token *tokens, const float *rows, size_t count, bool outputs) {
  const size_t batch = llama_n_batch(context_.get());
  for (size_t at = 0; at < count;) {
    const size_t size = std::min(batch, count - at);
    std::vector<llama_pos> positions(size);
    std::vector<int32_t> one(size, 1);
    std::vector<int8_t> wanted(size, 0);
    llama_seq_id sequence = 0;
    std::vector<llama_seq_id *> sequences(size, &sequence);
    for (size_t i = 0; i < size; i++) positions[i] = past_ + static_cast<llama_pos>(i);
    wanted[size - 1] = outputs && at + size == count;
    const llama_batch part = {static_cast<int32_t>(size), tokens ? const_cast<llama_token *>(tokens + at) : nullptr, rows ? const_cast<float *>(rows + at * static_cast<size_t>(facts_.hidden_size)) : nullptr,
                              positions.data(), one.data(), sequences.data(), wanted.data()};
    if (llama_decode(context_.get(), part) != 0) fail("llama.cpp failed (", said(), "); free memory, or give shorter audio");
    past_ += static_cast<llama_pos>(size), at += size;
  }
}

void Decoder::prefill(const std::vector<llama_token> &before, const Rows &audio, const std::vector<llama_token> &after, int64_t reserve) {
  if (audio.width != static_cast<size_t>(facts_.hidden_size) || audio.count == 0 || after.empty()) fail("the audio's rows have width ", audio.width, ", expected ", facts_.hidden_size, ", or nothing is asked");
  for (const auto *tokens : {&before, &after})
    for (const llama_token token : *tokens)
      if (token < 0 || token >= vocabulary()) fail("the prompt has token ", token, ", the vocabulary ", vocabulary(), "; export the bundle again");
  make_context(static_cast<int64_t>(before.size() + audio.count + after.size()) + reserve);
  llama_memory_clear(llama_get_memory(context_.get()), true);
  past_ = 0;
  decode(before.data(), nullptr, before.size(), false);
  decode(nullptr, audio.values.data(), audio.count, false);
  decode(after.data(), nullptr, after.size(), true);
}

const float *Decoder::logits() {
  const float *logits = llama_get_logits_ith(context_.get(), -1);
  if (!logits) fail("llama.cpp gives no logits");
  for (int32_t i = 0; i < vocabulary(); i++)
    if (!std::isfinite(logits[i])) fail("the decoder computes NaN or infinity; export the bundle again");
  return logits;
}

const char *Decoder::answer(const Sampling &sampling, int64_t most, const std::function<bool(llama_token)> &on_token) {
  Sampler sampler(sampling, vocabulary());
  std::vector<llama_token> tokens;
  for (;;) {
    const float *row = logits();
    const llama_token token = sampler.next({row, row + vocabulary()}, tokens);
    if (is_end(token)) return "end";
    tokens.push_back(token);
    if (!on_token(token)) return "callback";
    if (static_cast<int64_t>(tokens.size()) >= most) return "length";
    if (phrase_of_loop(tokens)) return "loop";
    decode(&token, nullptr, 1, true);
  }
}

}  // namespace dasheng
