// What decoder.gguf must be before llama.cpp, which ends the process over much that is wrong in one, loads it.
#pragma once
#include <string>

#include "manifest.h"

namespace dasheng {

struct GgufSizes {
  int64_t context_length, kv_width;  // numbers that a layer keeps for a position, of keys, and as many of values
};

// Fails where the file is not as docs/bundle.md, section 9, lets it be, or not what the manifest describes.
GgufSizes check_gguf(const std::string &path, const DecoderFacts &facts);

}  // namespace dasheng
