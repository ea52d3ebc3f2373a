/* libdasheng_edge: a dasheng-edge bundle (docs/bundle.md) in a C program, on the CPU, without Python.

   - No call throws, prints or ends the process. Those that return int return 0, or 1 after a failure:
     dasheng_edge_error() then says in a sentence what was wrong and what to do. Texts are UTF-8.
   - A bundle, and what was made of it, may be used from one thread at a time; several bundles from several threads.
   - Pointers that a call hands out stay valid as long as its comment says; nothing but `close` has to be called.
   - Every pointer parameter that is not said to be optional must not be NULL; NULL is an error then, not a crash. */
#ifndef DASHENG_EDGE_H
#define DASHENG_EDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define DASHENG_EDGE_API __attribute__((visibility("default")))
#else
#define DASHENG_EDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define DASHENG_EDGE_SAMPLE_RATE 16000

typedef struct dasheng_edge dasheng_edge;           /* an opened bundle */
typedef struct dasheng_edge_clip dasheng_edge_clip; /* a clip that was heard: what the decoder is given of it */

/* What the last failing call in this thread says; "" before any. Valid until the next failing call in this thread. */
DASHENG_EDGE_API const char *dasheng_edge_error(void);

typedef struct {
  int32_t threads;     /* that compute; 0: one for each processor this process may use */
  int32_t low_memory;  /* not 0: graphs and decoder are never in memory together, keys and values are q8_0 (unless the
                          bundle says q4_0), and batches are small */
  int32_t skip_sha256; /* not 0: sizes of files are checked, their contents are not */
} dasheng_edge_options;

/* Open a bundle: check its manifest and its files, and load the graphs and the decoder (with low_memory, when they are
   needed). `options` is optional; all zero is the default. */
DASHENG_EDGE_API int dasheng_edge_open(const char *folder, const dasheng_edge_options *options, dasheng_edge **bundle);

/* Free a bundle; NULL is fine. Close its clips first. */
DASHENG_EDGE_API void dasheng_edge_close(dasheng_edge *bundle);

/* Read an audio file: wav (PCM of 8, 16, 24 or 32 bits, float of 32 or 64 bits), and anything else where the library was
   built with libav. Channels are averaged, and the samples resampled to 16 kHz. Free `*samples` with
   dasheng_edge_free. */
DASHENG_EDGE_API int dasheng_edge_read_audio(const char *path, float **samples, size_t *count);
DASHENG_EDGE_API void dasheng_edge_free(float *samples); /* NULL is fine */

/* Hear a clip: mono samples at 16 kHz, full scale 1. */
DASHENG_EDGE_API int dasheng_edge_hear(dasheng_edge *bundle, const float *samples, size_t count,
                                       dasheng_edge_clip **clip);
DASHENG_EDGE_API void dasheng_edge_clip_close(dasheng_edge_clip *clip); /* NULL is fine */

/* Called with each piece of an answer as it is written: whole characters, ended by a zero. Any other result than 0 ends
   the answer. It must not call the bundle, and must not throw. */
typedef int (*dasheng_edge_text)(const char *piece, void *context);

typedef struct {
  const char *prompt;     /* what is asked; NULL: the bundle's own prompt */
  int32_t max_new_tokens; /* longest answer in tokens; 0: as the bundle says */
  dasheng_edge_text on_text; /* optional */
  void *context;             /* for on_text */
} dasheng_edge_request;

typedef struct {
  const char *text;      /* valid until the bundle answers again or is closed */
  const char *end;       /* why it ends: "end", "length", "loop" (a phrase over and over) or "callback" */
  const char *warning;   /* a sentence, or ""; valid as `text` */
  int32_t tokens;        /* of the answer, without the one that ends it */
  int32_t prompt_tokens; /* of text in the prompt */
  int32_t audio_tokens;  /* of 0.2 s each */
  double audio_s;        /* length of the clip */
  double hear_ms, prefill_ms, decode_ms;
} dasheng_edge_answer;

/* Ask about a clip. `request` is optional; all zero is the default. */
DASHENG_EDGE_API int dasheng_edge_ask(dasheng_edge *bundle, const dasheng_edge_clip *clip,
                                      const dasheng_edge_request *request, dasheng_edge_answer *answer);

/* Hear and ask. */
DASHENG_EDGE_API int dasheng_edge_caption(dasheng_edge *bundle, const float *samples, size_t count,
                                          const dasheng_edge_request *request, dasheng_edge_answer *answer);

typedef struct {
  const float *rows; /* [count, width]: a vector for each 40 ms. Valid until the bundle embeds again or is closed */
  const float *mean; /* [width] */
  size_t count, width;
} dasheng_edge_embedding;

/* The encoder's vectors for a clip. Bundles without a decoder do this, too. */
DASHENG_EDGE_API int dasheng_edge_embed(dasheng_edge *bundle, const float *samples, size_t count,
                                        dasheng_edge_embedding *embedding);

typedef struct {
  const char *clip, *seam, *unit; /* valid during the call */
  double error, tolerance;        /* accepted where error <= tolerance, which NaN never is */
  const char *note;               /* why there is no number, or "" */
} dasheng_edge_seam;

/* Hold this machine against the bundle's golden vectors: `on_seam` is called with each comparison, `*good` becomes 1 if
   all were accepted. A seam that is not is no failure of the call. */
DASHENG_EDGE_API int dasheng_edge_verify(dasheng_edge *bundle,
                                         void (*on_seam)(const dasheng_edge_seam *seam, void *context), void *context,
                                         int *good);

#ifdef __cplusplus
}
#endif
#endif
