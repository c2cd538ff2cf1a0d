#include <algorithm>

#include "convnextv2.h"
#include "convnextv2/classifier.hpp"
#include "graph.hpp"
#include "guard.hpp"

using convnextv2::Classifier;
using convnextv2::Error;
using convnextv2::guarded;

struct convnextv2_classifier {
  Classifier classifier;
};

namespace {

void require(bool condition, const char* message) {
  if (!condition) throw Error(CONVNEXTV2_INVALID_ARGUMENT, message);
}

}  // namespace

convnextv2_status convnextv2_set_metallib(const char* file) {
  return guarded([&] {
    require(file != nullptr, "convnextv2_set_metallib needs a file");
    convnextv2::set_metallib(file);
  });
}

convnextv2_status convnextv2_open(const char* folder, convnextv2_classifier** classifier) {
  return guarded([&] {
    require(classifier != nullptr, "convnextv2_open needs somewhere to put the classifier");
    *classifier = nullptr;
    require(folder != nullptr, "convnextv2_open needs a folder");
    *classifier = new convnextv2_classifier{Classifier(folder)};
  });
}

void convnextv2_close(convnextv2_classifier* classifier) { delete classifier; }

convnextv2_status convnextv2_classify(const convnextv2_classifier* classifier, const convnextv2_image* image,
                                      convnextv2_prediction* predictions, size_t capacity, size_t* count) {
  return guarded([&] {
    require(count != nullptr, "convnextv2_classify needs somewhere to put the count");
    *count = 0;
    require(classifier != nullptr && image != nullptr && (predictions != nullptr || capacity == 0),
            "convnextv2_classify needs a classifier, an image, and somewhere to put the predictions");
    const Classifier& it = classifier->classifier;
    const auto found = it.classify(std::span(image, 1), capacity);
    for (const auto& prediction : found.front()) {
      const std::string& label = it.description().labels[prediction.index];
      predictions[(*count)++] = {prediction.index, prediction.score, label.c_str()};
    }
  });
}

convnextv2_status convnextv2_run(const convnextv2_classifier* classifier, const uint8_t* rgb, size_t batch,
                                 size_t height, size_t width, float* probabilities, float* embeddings) {
  return guarded([&] {
    require(classifier != nullptr && rgb != nullptr && probabilities != nullptr,
            "convnextv2_run needs a classifier, pixels, and somewhere to put the probabilities");
    const Classifier& it = classifier->classifier;
    require(embeddings == nullptr || it.description().embedding_size != 0,
            "the graph was exported without --features: it has no embeddings");
    const auto output = it.run({rgb, batch * height * width * 3}, {batch, height, width, 3});
    std::copy(output.probabilities.begin(), output.probabilities.end(), probabilities);
    if (embeddings != nullptr) std::copy(output.embeddings.begin(), output.embeddings.end(), embeddings);
  });
}

const convnextv2_preparation* convnextv2_preparation_of(const convnextv2_classifier* classifier) {
  return classifier == nullptr ? nullptr : &classifier->classifier.description().preparation;
}

size_t convnextv2_label_count(const convnextv2_classifier* classifier) {
  return classifier == nullptr ? 0 : classifier->classifier.description().labels.size();
}

const char* convnextv2_label(const convnextv2_classifier* classifier, size_t index) {
  if (index >= convnextv2_label_count(classifier)) return nullptr;
  return classifier->classifier.description().labels[index].c_str();
}

size_t convnextv2_embedding_size(const convnextv2_classifier* classifier) {
  return classifier == nullptr ? 0 : classifier->classifier.description().embedding_size;
}

const char* convnextv2_mlx_version(void) { return convnextv2::Graph::mlx_version(); }
