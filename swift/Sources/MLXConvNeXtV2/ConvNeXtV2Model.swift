import ConvNeXtV2Core
import MLX
import MLXNN

// ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808), read from top to bottom like the paper. Names are those of Hugging
// Face transformers, and so are the parameters'. Images and features are NHWC: (N, H, W, C) is batch, height, width,
// channels throughout. Inference only: drop-path is the identity here.

private let normEps: Float = 1e-6  // of every norm but the final one; not MLX's 1e-5

/// Global Response Normalization: (N, H, W, C) -> (N, H, W, C).
final class ConvNeXtV2GRN: Module {
    let weight: MLXArray
    let bias: MLXArray

    init(_ channels: Int) {
        weight = MLXArray.zeros([1, 1, 1, channels])
        bias = MLXArray.zeros([1, 1, 1, channels])
    }

    func callAsFunction(_ x: MLXArray) -> MLXArray {
        globalResponseNorm(x, weight: weight, bias: bias)
    }
}

/// The stem: non-overlapping patches, projected and normalised.
final class ConvNeXtV2Embeddings: Module {
    @ModuleInfo(key: "patch_embeddings") var patchEmbeddings: ConvNeXtV2Convolution
    let layernorm: LayerNorm

    init(_ configuration: ConvNeXtV2Configuration, _ make: LayerFactory) {
        let patch = (configuration.patchSize.height, configuration.patchSize.width)
        let width = configuration.hiddenSizes[0]
        _patchEmbeddings.wrappedValue = make.convolution(
            configuration.numChannels, width, kernel: patch, stride: patch)
        layernorm = LayerNorm(dimensions: width, eps: normEps)
    }

    /// (N, H, W, channels) -> (N, H / patch, W / patch, C), rounded down.
    func callAsFunction(_ pixelValues: MLXArray) -> MLXArray {
        layernorm(patchEmbeddings(pixelValues.asType(patchEmbeddings.weight.dtype)))
    }
}

/// The block: depthwise 7x7, LayerNorm, expand, activation, GRN, project, around a residual connection.
///
/// (N, H, W, C) -> (N, H, W, C).
final class ConvNeXtV2Layer: Module {
    let dwconv: ConvNeXtV2Convolution
    let layernorm: LayerNorm
    @ModuleInfo var pwconv1: Linear
    let grn: ConvNeXtV2GRN
    @ModuleInfo var pwconv2: Linear
    let activation: ConvNeXtV2Configuration.Activation

    init(
        _ configuration: ConvNeXtV2Configuration, _ make: LayerFactory, path: String, channels: Int
    ) throws {
        dwconv = make.convolution(channels, channels, kernel: (7, 7), padding: 3, groups: channels)
        layernorm = LayerNorm(dimensions: channels, eps: normEps)
        _pwconv1.wrappedValue = try make.linear("\(path).pwconv1", channels, 4 * channels)
        grn = ConvNeXtV2GRN(4 * channels)
        _pwconv2.wrappedValue = try make.linear("\(path).pwconv2", 4 * channels, channels)
        activation = configuration.hiddenAct
    }

    func callAsFunction(_ hiddenStates: MLXArray) -> MLXArray {
        var branch = layernorm(dwconv(hiddenStates))
        branch = pwconv1(branch)  // (N, H, W, C) -> (N, H, W, 4C)
        branch = grn(activation.function(branch))
        return hiddenStates + pwconv2(branch)  // (N, H, W, 4C) -> (N, H, W, C)
    }
}

/// Blocks at one resolution, after a LayerNorm and a strided convolution that lead to it from the one before.
///
/// But for the first: (N, H, W, C) -> (N, H / 2, W / 2, C'), rounded down.
final class ConvNeXtV2Stage: Module {
    @ModuleInfo(key: "downsampling_layer") var downsamplingLayer: [UnaryLayer]
    let layers: [ConvNeXtV2Layer]

    init(_ configuration: ConvNeXtV2Configuration, _ make: LayerFactory, path: String, index: Int) throws {
        let channels = configuration.hiddenSizes[index]
        var downsampling: [UnaryLayer] = []
        if index > 0 {
            let before = configuration.hiddenSizes[index - 1]
            downsampling = [
                LayerNorm(dimensions: before, eps: normEps),
                make.convolution(before, channels, kernel: (2, 2), stride: (2, 2)),
            ]
        }
        _downsamplingLayer.wrappedValue = downsampling
        layers = try (0..<configuration.depths[index]).map {
            try ConvNeXtV2Layer(configuration, make, path: "\(path).layers.\($0)", channels: channels)
        }
    }

    func callAsFunction(_ hiddenStates: MLXArray) -> MLXArray {
        let downsampled = downsamplingLayer.reduce(hiddenStates) { $1($0) }
        return layers.reduce(downsampled) { $1($0) }
    }
}

final class ConvNeXtV2Encoder: Module {
    let stages: [ConvNeXtV2Stage]

    init(_ configuration: ConvNeXtV2Configuration, _ make: LayerFactory, path: String) throws {
        stages = try configuration.depths.indices.map {
            try ConvNeXtV2Stage(configuration, make, path: "\(path).stages.\($0)", index: $0)
        }
    }

    /// The stem's output -> the hidden states: the stem's output and each stage's, (N, H, W, C) of its own.
    func callAsFunction(_ hiddenStates: MLXArray) -> [MLXArray] {
        stages.reduce(into: [hiddenStates]) { all, stage in all.append(stage(all[all.count - 1])) }
    }
}

/// lastHiddenState (N, H, W, C); poolerOutput (N, C); hiddenStates: the stem's and the stages', (N, H, W, C) each.
public struct ConvNeXtV2ModelOutput {
    public let lastHiddenState: MLXArray
    public let poolerOutput: MLXArray
    public let hiddenStates: [MLXArray]
}

/// The model without a head: features and their pooled vector.
public final class ConvNeXtV2Model: Module {
    public let configuration: ConvNeXtV2Configuration
    let embeddings: ConvNeXtV2Embeddings
    let encoder: ConvNeXtV2Encoder
    let layernorm: LayerNorm

    /// A model whose convolutions and linear layers are zero, until it gets its weights: see ``load(from:dtype:)``.
    public convenience init(_ configuration: ConvNeXtV2Configuration) throws {
        try self.init(configuration, LayerFactory(quantization: configuration.quantization), prefix: "")
    }

    init(_ configuration: ConvNeXtV2Configuration, _ make: LayerFactory, prefix: String) throws {
        self.configuration = configuration
        embeddings = ConvNeXtV2Embeddings(configuration, make)
        encoder = try ConvNeXtV2Encoder(configuration, make, path: "\(prefix)encoder")
        layernorm = LayerNorm(
            dimensions: configuration.hiddenSizes[configuration.numStages - 1], eps: configuration.layerNormEps)
    }

    /// - Parameter pixelValues: (N, H, W, channels), floating point.
    /// - Throws: ``ConvNeXtV2Error/invalid(_:)`` that says what pixelValues must be, where they are not.
    public func callAsFunction(_ pixelValues: MLXArray) throws -> ConvNeXtV2ModelOutput {
        try check(pixelValues, configuration)
        let hiddenStates = encoder(embeddings(pixelValues))
        let last = hiddenStates[hiddenStates.count - 1]
        return ConvNeXtV2ModelOutput(lastHiddenState: last, poolerOutput: pool(last), hiddenStates: hiddenStates)
    }

    /// The normalised mean over the pixels: (N, H, W, C) -> (N, C).
    func pool(_ lastHiddenState: MLXArray) -> MLXArray {
        // summed in float32, because a float16 sum overflows
        layernorm(lastHiddenState.asType(.float32).mean(axes: [1, 2]).asType(lastHiddenState.dtype))
    }
}

/// logits (N, numLabels); hiddenStates as in ``ConvNeXtV2ModelOutput``.
public struct ConvNeXtV2ClassifierOutput {
    public let logits: MLXArray
    public let poolerOutput: MLXArray
    public let hiddenStates: [MLXArray]
}

/// The model with a linear head on the pooled features.
public final class ConvNeXtV2ForImageClassification: Module {
    public let configuration: ConvNeXtV2Configuration
    let convnextv2: ConvNeXtV2Model
    @ModuleInfo var classifier: Linear

    /// A model whose convolutions and linear layers are zero, until it gets its weights: see ``load(from:dtype:)``.
    public convenience init(_ configuration: ConvNeXtV2Configuration) throws {
        try self.init(configuration, LayerFactory(quantization: configuration.quantization))
    }

    init(_ configuration: ConvNeXtV2Configuration, _ make: LayerFactory) throws {
        guard configuration.numLabels > 0 else {
            throw ConvNeXtV2Error.invalid("the model has no classes: take ConvNeXtV2Model, which has no head")
        }
        self.configuration = configuration
        convnextv2 = try ConvNeXtV2Model(configuration, make, prefix: "convnextv2.")
        let width = configuration.hiddenSizes[configuration.numStages - 1]
        _classifier.wrappedValue = try make.linear("classifier", width, configuration.numLabels)
    }

    /// - Parameter pixelValues: (N, H, W, channels), floating point.
    /// - Throws: ``ConvNeXtV2Error/invalid(_:)`` that says what pixelValues must be, where they are not.
    public func callAsFunction(_ pixelValues: MLXArray) throws -> ConvNeXtV2ClassifierOutput {
        let outputs = try convnextv2(pixelValues)
        return ConvNeXtV2ClassifierOutput(
            logits: classifier(outputs.poolerOutput),  // (N, C) -> (N, numLabels)
            poolerOutput: outputs.poolerOutput, hiddenStates: outputs.hiddenStates)
    }
}

/// featureMaps: one (N, H, W, C) for each of `outFeatures`; hiddenStates as in ``ConvNeXtV2ModelOutput``.
public struct ConvNeXtV2BackboneOutput {
    public let featureMaps: [MLXArray]
    public let hiddenStates: [MLXArray]
}

/// The model as a source of feature maps for detection and segmentation, each with a LayerNorm of its own.
public final class ConvNeXtV2Backbone: Module {
    public let configuration: ConvNeXtV2Configuration
    let embeddings: ConvNeXtV2Embeddings
    let encoder: ConvNeXtV2Encoder
    @ModuleInfo(key: "hidden_states_norms") var hiddenStatesNorms: [String: LayerNorm]

    /// A model whose convolutions and linear layers are zero, until it gets its weights: see ``load(from:dtype:)``.
    public convenience init(_ configuration: ConvNeXtV2Configuration) throws {
        try self.init(configuration, LayerFactory(quantization: configuration.quantization))
    }

    init(_ configuration: ConvNeXtV2Configuration, _ make: LayerFactory) throws {
        self.configuration = configuration
        embeddings = ConvNeXtV2Embeddings(configuration, make)
        encoder = try ConvNeXtV2Encoder(configuration, make, path: "encoder")
        let channels = [configuration.hiddenSizes[0]] + configuration.hiddenSizes
        let norms = zip(configuration.stageNames, channels)
            .filter { configuration.outFeatures.contains($0.0) }
            .map { ($0.0, LayerNorm(dimensions: $0.1, eps: normEps)) }
        _hiddenStatesNorms.wrappedValue = Dictionary(uniqueKeysWithValues: norms)
    }

    /// - Parameter pixelValues: (N, H, W, channels), floating point.
    /// - Throws: ``ConvNeXtV2Error/invalid(_:)`` that says what pixelValues must be, where they are not.
    public func callAsFunction(_ pixelValues: MLXArray) throws -> ConvNeXtV2BackboneOutput {
        try check(pixelValues, configuration)
        let hiddenStates = encoder(embeddings(pixelValues))
        let featureMaps = zip(configuration.stageNames, hiddenStates).compactMap { hiddenStatesNorms[$0]?($1) }
        return ConvNeXtV2BackboneOutput(featureMaps: featureMaps, hiddenStates: hiddenStates)
    }
}

/// Throw a sentence where MLX would stop the process.
private func check(_ pixelValues: MLXArray, _ configuration: ConvNeXtV2Configuration) throws {
    let shape = pixelValues.shape
    let expected = "pixelValues must have the shape (batch, height, width, \(configuration.numChannels))"
    if shape.count == 4, shape[3] != configuration.numChannels, shape[1] == configuration.numChannels {
        throw ConvNeXtV2Error.invalid("\(expected), but \(shape) is channels-first: call transposed(0, 2, 3, 1)")
    }
    guard shape.count == 4, shape[3] == configuration.numChannels else {
        throw ConvNeXtV2Error.invalid("\(expected), not \(shape)")
    }
    guard [.float32, .float16, .bfloat16].contains(pixelValues.dtype) else {
        throw ConvNeXtV2Error.invalid("pixelValues must be floating point: use the image processor")
    }
    let least = configuration.minImageSize
    guard shape[1] >= least.height, shape[2] >= least.width else {
        throw ConvNeXtV2Error.image(
            "an image of \(shape[1]) x \(shape[2]) pixels is too small: the model needs \(least.height) x \(least.width)"
        )
    }
}
