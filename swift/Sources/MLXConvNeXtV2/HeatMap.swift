import ConvNeXtV2Core
import MLX
import MLXNN

/// Where in an image a label was seen: what each position of the last stage adds to the label's score, which is its logit
/// less the mean logit of all labels. The Python package's `explain` computes the same.
///
/// The classifier takes the mean over the positions, normalised. With the mean and the deviation of that LayerNorm held
/// fixed it is affine, so that each position has logits of its own, whose mean is the image's.
public struct HeatMap: Equatable, Sendable {
    public let classification: Classification
    public let height: Int
    public let width: Int
    /// The part of the image that the positions cover: the crop that the model sees.
    public let region: ImageRegion
    /// (height, width), row by row, in the units of the logit: they sum to the score. Negative where the image speaks
    /// against the label.
    public let contributions: [Float]

    /// From 0 to 1, for an overlay: 1 where most is added, 0 where nothing or less is.
    public var normalised: [Float] {
        let most = contributions.max() ?? 0
        return contributions.map { most > 0 ? max($0, 0) / most : 0 }
    }
}

extension ConvNeXtV2ForImageClassification {
    /// lastHiddenState (1, H, W, C) -> what each position adds to a label's score, (H, W) in float32.
    func contributions(_ lastHiddenState: MLXArray, of index: Int) -> MLXArray {
        let hidden = lastHiddenState[0].asType(.float32)  // (1, H, W, C) -> (H, W, C)
        let norm = convnextv2.layernorm
        let pooled = hidden.mean(axes: [0, 1])  // (C,)
        var normed = (hidden - pooled.mean()) / sqrt(variance(pooled) + norm.eps)
        if let weight = norm.weight { normed = normed * weight.asType(.float32) }
        if let bias = norm.bias { normed = normed + bias.asType(.float32) }
        let logits = classifier(normed).asType(.float32)  // (H, W, C) -> (H, W, numLabels)
        return (logits[0..., 0..., index] - logits.mean(axis: -1)) / Float(hidden.dim(0) * hidden.dim(1))
    }
}
