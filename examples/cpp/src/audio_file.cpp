#include "audio_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "error.h"
#include "file.h"

namespace dasheng {
namespace {

constexpr uint32_t target_hz = 16000, lowest_hz = 1000, highest_hz = 768000;
constexpr size_t most_channels = 64;
constexpr double most_seconds = 6 * 3600;

template <class Number>
Number little(std::string_view bytes, size_t at) {
  if (at > bytes.size() || bytes.size() - at < sizeof(Number)) fail("it breaks off");
  Number value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

struct Format {
  uint16_t tag = 0, channels = 0, bits = 0;
  uint32_t rate_hz = 0;
};

Format format_of(std::string_view chunk) {
  Format format{little<uint16_t>(chunk, 0), little<uint16_t>(chunk, 2), little<uint16_t>(chunk, 14), little<uint32_t>(chunk, 4)};
  if (format.tag == 0xfffe) {  // WAVE_FORMAT_EXTENSIBLE: the format is the head of a GUID
    static const std::string_view rest("\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71", 14);
    if (chunk.size() < 40 || chunk.substr(26, 14) != rest) fail("its format is none that is known here");
    format.tag = little<uint16_t>(chunk, 24);
  }
  const bool pcm = format.tag == 1 && (format.bits == 8 || format.bits == 16 || format.bits == 24 || format.bits == 32);
  const bool real = format.tag == 3 && (format.bits == 32 || format.bits == 64);
  if (!pcm && !real) fail("its samples have format ", format.tag, " and ", format.bits, " bits, expected PCM (1) of 8, 16, 24 or 32, or float (3) of 32 or 64");
  if (format.channels < 1 || format.channels > most_channels || format.rate_hz < lowest_hz || format.rate_hz > highest_hz)
    fail("it has ", format.channels, " channels at ", format.rate_hz, " Hz, expected 1 to ", most_channels, " at ", lowest_hz, " to ", highest_hz);
  return format;
}

float sample_of(const char *data, const Format &format) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(data[i])); };
  if (format.tag == 3 && format.bits == 32) {
    float value;
    std::memcpy(&value, data, 4);
    return value;
  }
  if (format.tag == 3) {
    double value;
    std::memcpy(&value, data, 8);
    return static_cast<float>(value);
  }
  if (format.bits == 8) return (static_cast<float>(byte(0)) - 128.0f) / 128.0f;
  uint32_t bits = 0;  // the sample in the upper bits of 32
  for (size_t i = 0; i < format.bits / 8u; i++) bits |= byte(i) << (32 - format.bits + 8 * i);
  int32_t value;
  std::memcpy(&value, &bits, 4);
  return static_cast<float>(static_cast<double>(value) / 2147483648.0);
}

// Modified Bessel function of order 0, for Kaiser's window.
double bessel(double x) {
  double sum = 1, term = 1;
  for (int k = 1; k < 100; k++) sum += term *= (x / (2 * k)) * (x / (2 * k));
  return sum;
}

}  // namespace

bool is_wav(std::string_view bytes) { return bytes.size() >= 12 && bytes.substr(0, 4) == "RIFF" && bytes.substr(8, 4) == "WAVE"; }

Sound read_wav(std::string_view bytes) {
  Format format;
  for (size_t at = 12; at + 8 <= bytes.size();) {
    const std::string_view name = bytes.substr(at, 4);
    const size_t stated = little<uint32_t>(bytes, at + 4), size = std::min(stated, bytes.size() - at - 8);
    const std::string_view chunk = bytes.substr(at + 8, size);
    if (name == "fmt ") format = format_of(chunk);
    if (name == "data") {
      if (format.channels == 0) fail("its samples come before their format");
      // 0 and all ones: the length was not known when the file was begun, so all is samples that follows.
      const std::string_view data = stated == 0 || stated == 0xffffffff ? bytes.substr(at + 8) : chunk;
      const size_t width = format.bits / 8u, frames = data.size() / (width * format.channels);
      if (static_cast<double>(frames) / format.rate_hz > most_seconds) fail("it is longer than ", most_seconds / 3600, " hours; cut it");
      Sound sound;
      sound.channels = format.channels, sound.rate_hz = format.rate_hz;
      sound.samples.resize(frames * format.channels);
      for (size_t i = 0; i < sound.samples.size(); i++) sound.samples[i] = sample_of(data.data() + i * width, format);
      return sound;
    }
    at += 8 + size + (stated & 1);
  }
  fail("it holds no samples");
}

std::vector<float> mono(const Sound &sound) {
  if (sound.channels == 1) return sound.samples;
  std::vector<float> mixed(sound.samples.size() / sound.channels);
  for (size_t i = 0; i < mixed.size(); i++) {
    double sum = 0;
    for (size_t channel = 0; channel < sound.channels; channel++) sum += static_cast<double>(sound.samples[i * sound.channels + channel]);
    mixed[i] = static_cast<float>(sum / static_cast<double>(sound.channels));
  }
  return mixed;
}

// A sinc under Kaiser's window, 128 zero crossings on each side, which falls off by 170 dB between 0.91 and 1.0 of the lower
// Nyquist frequency, as soxr's very high quality does; computed in float64. Frames that would lie before the file's begin or behind its end are zeros.
std::vector<float> resampled(const std::vector<float> &samples, uint32_t from_hz, uint32_t to_hz) {
  if (from_hz == to_hz || samples.empty()) return samples;
  const uint32_t divisor = std::gcd(from_hz, to_hz), up = to_hz / divisor, down = from_hz / divisor;
  const double beta = 18.3, pi = 3.14159265358979323846;
  const double cutoff = 0.9557 * std::min(1.0, static_cast<double>(to_hz) / from_hz);  // of the source's Nyquist frequency
  const double half = 128 / cutoff;                                                   // in source samples
  const int64_t reach = static_cast<int64_t>(half) + 1;
  const size_t taps = static_cast<size_t>(2 * reach), count = static_cast<size_t>((uint64_t{samples.size()} * up + down - 1) / down);
  const auto tap = [&](double distance) {  // from the place that is asked for, in source samples
    if (std::fabs(distance) >= half) return 0.0;
    const double x = pi * cutoff * distance, inside = distance / half;
    return (std::fabs(x) < 1e-12 ? 1.0 : std::sin(x) / x) * cutoff * bessel(beta * std::sqrt(1 - inside * inside)) / bessel(beta);
  };
  // One filter for each of `up` phases, as far as they are few; rates that have nothing in common are rounded to 1/1024.
  const uint32_t phases = std::min<uint32_t>(up, 1024);
  std::vector<double> filters(phases * taps);
  for (uint32_t phase = 0; phase < phases; phase++)
    for (size_t i = 0; i < taps; i++) filters[phase * taps + i] = tap(static_cast<double>(phase) / phases - static_cast<double>(static_cast<int64_t>(i) - reach + 1));
  std::vector<float> out(count);
  for (size_t i = 0; i < count; i++) {
    const uint64_t place = uint64_t{i} * down;  // six hours at 768 kHz are far from 2^64
    int64_t first = static_cast<int64_t>(place / up);
    uint64_t phase = place % up;
    if (phases != up) phase = (phase * phases + up / 2) / up;
    if (phase == phases) phase = 0, first++;
    double sum = 0;
    const int64_t begin = first - reach + 1;
    const int64_t low = std::max<int64_t>(0, -begin), high = std::min<int64_t>(static_cast<int64_t>(taps), static_cast<int64_t>(samples.size()) - begin);
    for (int64_t k = low; k < high; k++) sum += static_cast<double>(samples[static_cast<size_t>(begin + k)]) * filters[phase * taps + static_cast<size_t>(k)];
    out[i] = static_cast<float>(sum);
  }
  return out;
}

std::vector<float> read_audio(const std::string &path) {
  try {
    const MappedFile file(path);
    Sound sound = is_wav(file.bytes()) ? read_wav(file.bytes()) : read_with_libav(path);
    if (sound.samples.empty()) fail("it holds no samples");
    for (const float sample : sound.samples)
      if (!std::isfinite(sample)) fail("it holds samples that are no numbers");
    const uint32_t rate = sound.rate_hz;
    std::vector<float> mixed = mono(sound);
    sound = {};
    return resampled(mixed, rate, target_hz);
  } catch (const Error &error) {
    fail("cannot read ", shown(path, 200), ": ", error.what());
  }
}

}  // namespace dasheng
