// The border: nothing is thrown over it, and every failure is a sentence.
#include <cstdlib>
#include <cstring>
#include <new>

#include "audio_file.h"
#include "bundle.h"
#include "error.h"

struct dasheng_edge : dasheng::Bundle {
  using dasheng::Bundle::Bundle;
};
struct dasheng_edge_clip : dasheng::Clip {};

namespace {

thread_local std::string last_error;

void remember(const char *text) noexcept {
  try {
    last_error = text;
  } catch (...) {
    last_error.clear();
  }
}

template <class Call>
int guarded(Call call) noexcept {
  try {
    call();
    return 0;
  } catch (const std::bad_alloc &) {
    remember("there is not enough memory: free some, or give shorter audio");
  } catch (const std::length_error &) {
    remember("there is not enough memory: free some, or give shorter audio");
  } catch (const std::exception &error) {
    remember(error.what());
  } catch (...) {
    remember("something failed that has no name");
  }
  return 1;
}

template <class... Pointers>
void need(const Pointers *...pointers) {
  if (!(... && (pointers != nullptr))) dasheng::fail("a pointer is NULL that must not be; see dasheng_edge.h");
}

}  // namespace

extern "C" {

const char *dasheng_edge_error(void) { return last_error.c_str(); }

int dasheng_edge_open(const char *folder, const dasheng_edge_options *options, dasheng_edge **bundle) {
  return guarded([&] {
    need(folder, bundle);
    *bundle = nullptr;
    *bundle = new dasheng_edge(folder, options ? *options : dasheng_edge_options{});
  });
}

void dasheng_edge_close(dasheng_edge *bundle) {
  guarded([&] { delete bundle; });
}

int dasheng_edge_read_audio(const char *path, float **samples, size_t *count) {
  return guarded([&] {
    need(path, samples, count);
    *samples = nullptr, *count = 0;
    const std::vector<float> read = dasheng::read_audio(path);
    float *copy = static_cast<float *>(std::malloc(std::max<size_t>(read.size(), 1) * sizeof(float)));
    if (!copy) throw std::bad_alloc();
    if (!read.empty()) std::memcpy(copy, read.data(), read.size() * sizeof(float));
    *samples = copy, *count = read.size();
  });
}

void dasheng_edge_free(float *samples) { std::free(samples); }

int dasheng_edge_hear(dasheng_edge *bundle, const float *samples, size_t count, dasheng_edge_clip **clip) {
  return guarded([&] {
    need(bundle, clip);
    *clip = nullptr;
    if (count) need(samples);
    *clip = new dasheng_edge_clip{bundle->hear(samples, count)};
  });
}

void dasheng_edge_clip_close(dasheng_edge_clip *clip) { delete clip; }

int dasheng_edge_ask(dasheng_edge *bundle, const dasheng_edge_clip *clip, const dasheng_edge_request *request, dasheng_edge_answer *answer) {
  return guarded([&] {
    need(bundle, clip, answer);
    *answer = {};
    const dasheng_edge_request given = request ? *request : dasheng_edge_request{};
    std::function<bool(const std::string &)> on_text;
    if (given.on_text) on_text = [&](const std::string &piece) { return given.on_text(piece.c_str(), given.context) == 0; };
    dasheng::Answer &last = bundle->last_answer = bundle->ask(*clip, given.prompt, given.max_new_tokens, on_text);
    *answer = {last.text.c_str(), last.end, last.warning.c_str(), static_cast<int32_t>(last.tokens), static_cast<int32_t>(last.prompt_tokens), static_cast<int32_t>(last.audio_tokens),
               clip->audio_s, clip->hear_ms, last.prefill_ms, last.decode_ms};
  });
}

int dasheng_edge_caption(dasheng_edge *bundle, const float *samples, size_t count, const dasheng_edge_request *request, dasheng_edge_answer *answer) {
  dasheng_edge_clip *clip = nullptr;
  const int status = dasheng_edge_hear(bundle, samples, count, &clip) || dasheng_edge_ask(bundle, clip, request, answer);
  dasheng_edge_clip_close(clip);
  return status;
}

int dasheng_edge_embed(dasheng_edge *bundle, const float *samples, size_t count, dasheng_edge_embedding *embedding) {
  return guarded([&] {
    need(bundle, embedding);
    *embedding = {};
    if (count) need(samples);
    const dasheng::Rows &rows = bundle->last_embedding = bundle->embed(samples, count);
    std::vector<double> sums(rows.width);
    for (size_t i = 0; i < rows.values.size(); i++) sums[i % rows.width] += static_cast<double>(rows.values[i]);
    bundle->last_mean.clear();
    for (const double sum : sums) bundle->last_mean.push_back(static_cast<float>(sum / static_cast<double>(rows.count)));
    *embedding = {rows.values.data(), bundle->last_mean.data(), rows.count, rows.width};
  });
}

int dasheng_edge_verify(dasheng_edge *bundle, void (*on_seam)(const dasheng_edge_seam *, void *), void *context, int *good) {
  return guarded([&] {
    need(bundle, good);
    *good = 0;
    *good = bundle->verify([&](const dasheng_edge_seam &seam) {
      if (on_seam) on_seam(&seam, context);
    });
  });
}

}  // extern "C"
