// golden.npz (docs/bundle.md, section 11): a ZIP file of NumPy arrays, read without either.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace dasheng {

struct Array {
  std::vector<float> values;  // of float32
  std::vector<int64_t> shape;
};

struct GoldenClip {
  std::string name;
  std::vector<float> samples;  // v / 32768
  Array log_mel, acoustic_mel, patches, embeddings;
  std::vector<int32_t> prompt, tokens;
  std::vector<float> logits, margins;
};

// Clips with the fields that a bundle of its kind has; `most` of them (0: all).
std::vector<GoldenClip> read_golden(const std::string &path, bool acoustic, bool decodes, size_t most = 0);

// The ids of the default prompt of the first clip, -1 where the audio goes: no other array is read.
std::vector<int32_t> read_default_prompt(const std::string &path);

// RFC 1951: inflates to exactly `size` bytes, or fails.
std::string inflate(const std::string &deflated, size_t size);

}  // namespace dasheng
