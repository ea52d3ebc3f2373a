// manifest.json (docs/bundle.md, section 2), and the counting law (section 3).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dasheng {

struct FrontEnd {
  int64_t n_fft, hop, n_mels, patch_frames, chunk_frames, tokens_patches, min_samples, pads_below;
  double top_db;
  int64_t n_acoustic = 0, acoustic_n_fft = 0;  // 0: one branch
  bool pads_last_chunk, masks_last_patch;

  bool takes_padding() const { return pads_last_chunk || !masks_last_patch; }
  int64_t chunk_patches() const { return chunk_frames / patch_frames; }
  int64_t padded(int64_t samples) const { return samples >= pads_below ? samples : min_samples; }
  int64_t frames(int64_t samples) const { return 1 + samples / hop; }
  int64_t patches(int64_t samples) const { return frames(samples) / patch_frames; }
  int64_t valid_patches(int64_t samples) const { return samples / (hop * patch_frames); }
  int64_t tokens(int64_t samples) const { return patches(samples) / tokens_patches; }
};

struct DecoderFacts {
  std::string arch, precision, kv_type;
  int64_t hidden_size, layers, vocab_size, context_length;
};

struct Sampling {
  double temperature = 0, top_p = 1, min_p = 0, repetition_penalty = 1;
  int64_t top_k = 0, seed = 0, no_repeat_ngram_size = 0;
};

struct PromptFacts {
  std::string prompt, audio_token, audio_bos_token, audio_eos_token;
  int64_t max_new_tokens;
  double comfortable_s;
  Sampling sampling;
};

// What a prompt is made of (program.prompts): token ids, the clip, or a run of text with the user's prompt in it.
struct PromptPart {
  enum class Kind { ids, audio, prompt } kind;
  std::vector<int32_t> ids;
  std::string prefix, suffix;
};

struct PromptProgram {
  std::optional<std::vector<PromptPart>> standard, own;  // none: the chat template does something that they cannot say
  std::string blanks;                                    // what becomes of white space at the ends of a user's prompt
};

struct Tolerances {
  double log_mel_db = 0, acoustic_nepers = 0, patches_relative = 0, embeddings_relative = 0, logits_relative = 0, token_margin = 0;
};

struct FileFacts {
  std::string name, sha256;
  int64_t bytes;
};

struct Manifest {
  FrontEnd front_end;
  int64_t embed_dim;
  std::optional<DecoderFacts> decoder;
  std::optional<PromptFacts> prompt;
  std::optional<PromptProgram> program;
  Tolerances tolerances;
  std::vector<FileFacts> files;
};

// Checks all of section 2: the manifest, that each file is there, its size and, where asked for, its SHA-256.
Manifest read_manifest(const std::string &folder, bool check_sha256);

}  // namespace dasheng
