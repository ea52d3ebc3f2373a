// Audio files -> mono samples at 16 kHz (docs/bundle.md, section 4).
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace dasheng {

struct Sound {
  std::vector<float> samples;  // of all channels, one frame after another
  size_t channels = 0;
  uint32_t rate_hz = 0;
};

std::vector<float> read_audio(const std::string &path);

bool is_wav(std::string_view bytes);
Sound read_wav(std::string_view bytes);
Sound read_with_libav(const std::string &path);  // fails where the library was built without

std::vector<float> mono(const Sound &sound);
std::vector<float> resampled(const std::vector<float> &samples, uint32_t from_hz, uint32_t to_hz);

}  // namespace dasheng
