// From samples to what the decoder is given (docs/bundle.md, sections 3 to 7).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "manifest.h"
#include "session.h"

namespace dasheng {

struct Rows {
  std::vector<float> values;  // [count, width]
  size_t count = 0, width = 0;
};

struct Spectra {
  int64_t samples = 0, frames = 0;  // of the padded clip
  std::vector<float> log_mel, acoustic_mel;  // [bands, frames]
};

class Hearing {
 public:
  Hearing(const std::string &folder, const Manifest &manifest, int threads);
  Spectra spectra(const float *samples, size_t count) const;
  Rows patches(const Spectra &spectra) const;
  Rows embeddings(Rows patches) const;

 private:
  struct Piece;
  Piece piece(const std::vector<float> &samples, int64_t first, int64_t last, int64_t context) const;
  const FrontEnd &spec_;
  int64_t width_ = 0, hidden_ = 0;
  std::unique_ptr<Session> front_end_, encoder_, projector_;
};

}  // namespace dasheng
