// What exemplar_steps works on: sizes, one member's parameters, working memory, the threads that share a member.
#pragma once

#include <cstdint>

#include "cpu/exemplar_layers.h"
#include "cpu/gemm_unpacked.h"
#include "cpu/integers.h"
#include "cpu/scratch.h"
#include "ops.h"

namespace icl::ICL_ISA {

constexpr int64_t kTokenBlock = 12;   // tokens of a unit of work
constexpr int64_t kLabelChunk = 256;  // rows of the embedding and unembedding of labels of a unit of work
constexpr int64_t kRows = 16;         // rows of a matrix whose gradient is formed and used up in the cache
constexpr float kNoLabel = -1e9f;     // the logit of a label that a member does not tell apart or a context lacks

// The order of ExemplarSteps::parameters; layer l begins at kLayers + l * kPerLayer
enum Slot {
  kEmbedExemplar, kEmbedExemplarBias, kEmbedLabel, kPosition, kFinalGain, kFinalBias, kUnembed, kUnembedBias, kLayers
};
enum LayerSlot { kGain, kBias, kQuery, kKey, kValue, kOut, kPerLayer };

struct Sizes {
  int64_t batch, slices, lanes;  // lanes: of all slices
  int64_t tokens, columns;       // of a sequence; times kLanes
  int64_t width, heads, depth, layers, features, labels;
  int64_t row, feature_row;  // width and features in whole vectors
  int64_t most;              // distinct tokens, at most
  int64_t slots;             // of the hash table of exemplars, a power of two
  int64_t chunks;            // of labels
  int64_t blocks;            // of kRows rows of a [C, ...] matrix

  explicit Sizes(const ExemplarSteps& p)
      : batch(p.batch), slices(ceil_div(p.batch, kLanes)), lanes(slices * kLanes), tokens(2 * p.pairs + 1),
        columns(tokens * kLanes), width(p.width), heads(p.heads), depth(p.width / p.heads), layers(p.layers),
        features(p.feature_count), labels(p.label_count), row(round_up(width, W)), feature_row(round_up(features, W)),
        most(batch * tokens), slots(1), chunks(ceil_div(labels, kLabelChunk)), blocks(ceil_div(width, kRows)) {
    while (slots < 2 * batch * (p.pairs + 1)) slots *= 2;
  }
};

// A parameter of one member
struct Parameter {
  float *value, *first, *second;
  int64_t size;
  float l2;  // twice the coefficient: the gradient per unit of weight
  bool trainable;
};

// What is forced in one member
struct Forced {
  const bool* previous_token;  // [H]
  bool first_layer;
  const bool* match;  // [H]
  int64_t copy;
  bool no_previous_token;
  const float *heads, *temperature;  // [L, H]
};

struct Member {
  Parameter parameters[kLayers + 2 * kPerLayer];
  Forced forced;
  int64_t known;  // labels

  Member(const ExemplarSteps& p, const Sizes& sizes, int64_t member) {
    const int64_t c = sizes.width, v = sizes.labels;
    const int64_t shared[] = {c * sizes.features, c, v * c, sizes.tokens * c, c, c, v * c, v};
    const int64_t layer[] = {c, c, c * c, c * c, c * c, c * c};
    for (int64_t i = 0; i < kLayers + sizes.layers * kPerLayer; ++i) {
      const int64_t size = i < kLayers ? shared[i] : layer[(i - kLayers) % kPerLayer];
      const auto at = [&](int which) {
        const int64_t address = p.parameters[3 * i + which];
        return address ? reinterpret_cast<float*>(address) + member * size : nullptr;
      };
      parameters[i] = {at(0), at(1), at(2), size, 2 * p.l2[i], at(0) && p.trainable[i * p.members + member]};
    }
    const int64_t h = sizes.heads, lh = sizes.layers * h;
    forced = {p.previous_token + member * h, p.first_layer[member], p.match + member * h, p.copy[member],
              p.no_previous_token[member], p.heads_scale + member * lh, p.temperature + member * lh};
    known = p.outputs[member];
  }

  const Parameter& of(int64_t slot) const { return parameters[slot]; }
  const Parameter& of(int64_t layer, int64_t slot) const { return parameters[kLayers + layer * kPerLayer + slot]; }
  const float* value(int64_t slot) const { return of(slot).value; }
  const float* value(int64_t layer, int64_t slot) const { return of(layer, slot).value; }
  bool copies() const { return forced.copy >= 0; }
};

// The sequences of one member and step
struct Sequences {
  const int64_t *classes, *exemplars, *labels, *target;
};

// kLanes examples: [C][T][kLanes] unless said otherwise
struct Slice {
  int32_t* token;                                 // [T][kLanes], the distinct token at each place
  float* right;                                   // [T][kLanes], weights of the clamp match
  float *q0, *k0, *v0, *z0, *pattern0;            // first of two layers; pattern [H][T][T][kLanes]
  float *x, *xhat, *h, *inverse;                  // the stream before the last layer and its norm; inverse [T][kLanes]
  float *q, *k, *v, *z, *pattern;                 // last layer; q and z [C][kLanes], pattern [H][T][kLanes]
  float *last, *last_xhat, *hidden, *last_inverse;  // the query's final stream and norm [C][kLanes]
  float *dq, *dk, *dv, *dz, *dx, *dlast;          // gradients, as what they are of
  float *dgain, *dbias, *dfinal_gain, *dfinal_bias;  // [C]

  void take(Cutter& cutter, const Sizes& s) {
    const auto take = [&](int64_t count, float*& to) { to = cutter.take(count); };
    const int64_t all = s.row * s.columns, one = s.row * kLanes;
    token = reinterpret_cast<int32_t*>(cutter.take(s.columns));
    take(s.columns, right);
    if (s.layers == 2) {
      for (float** each : {&q0, &k0, &v0, &z0, &x, &xhat, &h, &dx}) take(all, *each);
      take(s.heads * s.tokens * s.columns, pattern0);
      take(s.columns, inverse);
      take(s.row, dgain);
      take(s.row, dbias);
    }
    for (float** each : {&k, &v, &dk, &dv}) take(all, *each);
    for (float** each : {&q, &z, &last, &last_xhat, &hidden, &dq, &dz, &dlast}) take(one, *each);
    take(s.heads * s.columns, pattern);
    take(kLanes, last_inverse);
    take(s.row, dfinal_gain);
    take(s.row, dfinal_bias);
  }
};

// Everything of one member between two updates. "Places" are (slice, t, lane), rows of them for all slices.
struct Work {
  // distinct tokens: exemplars first; with positions in them where positions are added
  int64_t count, exemplars;
  int64_t* key;            // [most], of an exemplar its row in features; of a label the label
  int32_t* position;       // [most]
  int32_t *table, *label_first, *next;  // [slots], [V], [most]: finding tokens: hashed; by label, linked
  int32_t *begin, *places;  // [most + 1], [most]: where each token is

  float *features;                             // [most][feature_row]
  float *embedded, *xhat0, *h0, *inverse0;     // [most][row]; inverse [most]
  float *qkv, *dqkv;                           // [most][3 * row]
  float *dembedded, *dh0;                      // [most][row]
  float *dqkv_places, *direct_places;          // [places][3 * row], [places][row]
  float *z0_rows, *h_rows, *z_rows, *hidden_rows;  // [places][row] twice, [lanes][row] twice
  float *embed_transposed, *qkv_transposed, *qkv_rows;  // weights: [F][row], [C][3 * row], [3][C][row]
  float *hidden;                               // [C][lanes]
  float *logits;                               // [V][lanes]
  float *top, *sum;                            // [chunks][lanes]
  float *scale;                                // [chunks][lanes]: exp(top of chunk - log-sum-exp) / B
  float *target_logit, *loss;                  // [lanes]
  float *dhidden;                              // [chunks][C][lanes]
  float *gradient;                             // [threads][kRows][longest row]
  int64_t gradient_size;
  Slice* slices;

  void take(Cutter& cutter, const Sizes& s, int64_t threads) {
    const auto take = [&](int64_t count, float*& to) { to = cutter.take(count); };
    const auto ints = [&](int64_t count) { return reinterpret_cast<int32_t*>(cutter.take(count)); };
    const int64_t most = s.most, places = s.slices * s.columns;
    key = reinterpret_cast<int64_t*>(cutter.take(2 * most));
    position = ints(most), table = ints(s.slots), label_first = ints(s.labels), next = ints(most);
    begin = ints(most + 1), this->places = ints(most);
    take(s.batch * (s.tokens / 2 + 1) * s.feature_row, features);
    for (float** each : {&embedded, &xhat0, &h0, &dembedded, &dh0}) take(most * s.row, *each);
    take(most, inverse0);
    take(most * 3 * s.row, qkv);
    take(most * 3 * s.row, dqkv);
    take(places * 3 * s.row, dqkv_places);
    take(places * s.row, direct_places);
    if (s.layers == 2) {
      take(places * s.row, z0_rows);
      take(places * s.row, h_rows);
    }
    take(s.lanes * s.row, z_rows);
    take(s.lanes * s.row, hidden_rows);
    take(s.features * s.row, embed_transposed);
    take(s.width * 3 * s.row, qkv_transposed);
    take(s.width * 3 * s.row, qkv_rows);
    take(s.row * s.lanes, hidden);
    take(s.labels * s.lanes, logits);
    for (float** each : {&top, &sum, &scale}) take(s.chunks * s.lanes, *each);
    take(s.lanes, target_logit);
    take(s.lanes, loss);
    take(s.chunks * s.width * s.lanes, dhidden);
    gradient_size = max(max(kRows * max(s.row, s.feature_row), s.tokens * s.row), kLabelChunk);
    take(threads * gradient_size, gradient);
    slices = reinterpret_cast<Slice*>(cutter.take(s.slices * int64_t(sizeof(Slice) / sizeof(float))));
    Slice measured;
    for (int64_t i = 0; i < s.slices; ++i) (cutter.base ? slices[i] : measured).take(cutter, s);
  }
};

}  // namespace icl::ICL_ISA
