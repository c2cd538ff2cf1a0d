import Foundation

/// The model's configuration, in Hugging Face's terms: what a checkpoint's `config.json` says of inference.
public struct ConvNeXtV2Configuration: Equatable, Sendable {
    /// The eight published sizes (table 9 of the ConvNeXt V2 paper, arXiv:2301.00808).
    public enum Size: String, CaseIterable, Sendable {
        case atto, femto, pico, nano, tiny, base, large, huge

        public var depths: [Int] {
            switch self {
            case .atto, .femto, .pico: [2, 2, 6, 2]
            case .nano: [2, 2, 8, 2]
            case .tiny: [3, 3, 9, 3]
            case .base, .large, .huge: [3, 3, 27, 3]
            }
        }

        public var hiddenSizes: [Int] {
            let first =
                switch self {
                case .atto: 40
                case .femto: 48
                case .pico: 64
                case .nano: 80
                case .tiny: 96
                case .base: 128
                case .large: 192
                case .huge: 352
                }
            return [first, 2 * first, 4 * first, 8 * first]
        }
    }

    public enum Activation: String, CaseIterable, Sendable {
        case gelu, relu, silu, swish, selu
        case geluNew = "gelu_new"
        case geluPyTorchTanh = "gelu_pytorch_tanh"
    }

    /// The sides of the stem's patches in pixels.
    public struct PatchSize: Equatable, Sendable {
        public let height: Int
        public let width: Int

        public init(height: Int, width: Int) {
            self.height = height
            self.width = width
        }
    }

    /// Channels of the input image.
    public let numChannels: Int
    public let patchSize: PatchSize
    /// Channels of each stage.
    public let hiddenSizes: [Int]
    /// Blocks of each stage.
    public let depths: [Int]
    public let hiddenAct: Activation
    /// Epsilon of the final LayerNorm alone; all others use 1e-6.
    public let layerNormEps: Float
    /// Stages that a backbone returns, in order: "stem", "stage1", ...
    public let outFeatures: [String]
    /// The label of each class, in the order of the logits; empty without a head.
    public let labels: [String]
    /// How linear layers are quantized, where they are.
    public let quantization: ConvNeXtV2Quantization?

    // Bounds that no real checkpoint comes near, so that a hostile file cannot ask for the whole memory.
    static let mostChannels = 65_536
    static let mostStages = 64
    static let mostBlocks = 1_000
    static let mostLabels = 100_000

    public var numStages: Int { depths.count }
    /// Classes; 0 means no head.
    public var numLabels: Int { labels.count }
    public var stageNames: [String] { Self.stageNames(numStages) }

    /// The smallest height and width in pixels that leave one position after the last stage.
    public var minImageSize: PatchSize {
        let stride = 1 << min(numStages - 1, 40)  // beyond which no image is large enough, and no number
        return PatchSize(height: patchSize.height * stride, width: patchSize.width * stride)
    }

    /// - Parameters:
    ///   - outFeatures: nil means the last stage alone.
    ///   - labels: the label of each class; none means a model without a head.
    /// - Throws: ``ConvNeXtV2Error/invalid(_:)`` that names the value that makes no sense.
    public init(
        numChannels: Int = 3, patchSize: PatchSize = PatchSize(height: 4, width: 4), hiddenSizes: [Int],
        depths: [Int], hiddenAct: Activation = .gelu, layerNormEps: Float = 1e-12, outFeatures: [String]? = nil,
        labels: [String] = [], quantization: ConvNeXtV2Quantization? = nil
    ) throws {
        let channels = 1...Self.mostChannels
        try Self.require(channels.contains(numChannels), "num_channels must be from 1 to \(Self.mostChannels)")
        try Self.require(
            channels.contains(patchSize.height) && channels.contains(patchSize.width),
            "patch_size must be from 1 to \(Self.mostChannels)")
        try Self.require(
            (1...Self.mostStages).contains(depths.count) && depths.count == hiddenSizes.count,
            "depths and hidden_sizes must have one entry for each of 1 to \(Self.mostStages) stages")
        try Self.require(
            hiddenSizes.allSatisfy(channels.contains), "each of hidden_sizes must be from 1 to \(Self.mostChannels)")
        try Self.require(
            depths.allSatisfy((0...Self.mostBlocks).contains) && depths.reduce(0, +) <= Self.mostBlocks,
            "depths must sum to at most \(Self.mostBlocks) blocks")
        try Self.require((0...1).contains(layerNormEps), "layer_norm_eps must be from 0 to 1")
        try Self.require(labels.count <= Self.mostLabels, "there may be at most \(Self.mostLabels) labels")
        let names = Self.stageNames(depths.count)
        let wanted = outFeatures ?? [names[names.count - 1]]
        try Self.require(
            wanted == names.filter(wanted.contains),
            "out_features must name each stage once, in order, of \(names.joined(separator: ", "))")
        self.numChannels = numChannels
        self.patchSize = patchSize
        self.hiddenSizes = hiddenSizes
        self.depths = depths
        self.hiddenAct = hiddenAct
        self.layerNormEps = layerNormEps
        self.outFeatures = wanted
        self.labels = labels
        self.quantization = quantization
    }

    /// A published size, with as many unnamed labels as it has classes.
    public init(size: Size, numLabels: Int = 1000) throws {
        try self.init(hiddenSizes: size.hiddenSizes, depths: size.depths, labels: ClassLabels.unnamed(numLabels))
    }

    /// Read the `config.json` of a checkpoint folder, or the file itself.
    ///
    /// - Throws: ``ConvNeXtV2Error`` where it is missing, of another architecture, or makes no sense.
    public init(contentsOf url: URL) throws {
        let file = url.pathExtension == "json" ? url : url.appendingPathComponent("config.json")
        do {
            try self.init(fields: JSONValue.object(from: file))
        } catch ConvNeXtV2Error.invalid(let sentence) {
            throw ConvNeXtV2Error.invalid("\(file.path): \(sentence)")
        }
    }

    init(fields: [String: JSONValue]) throws {
        let architecture = try fields.text("model_type") ?? "convnextv2"
        try Self.require(
            architecture == "convnextv2",
            "this is a checkpoint of the architecture \(short(architecture)), and only convnextv2 can be read")
        if fields["architecture"] != nil && fields["model_type"] == nil {
            throw ConvNeXtV2Error.invalid(
                "this is timm's configuration: convert the checkpoint with python -m mlx_convnextv2.convert")
        }
        let channels = 1...Self.mostChannels
        let depths = try fields.wholes("depths", in: 0...Self.mostBlocks) ?? Size.tiny.depths
        let stages = try fields.whole("num_stages", in: 1...Self.mostStages) ?? 4
        guard stages == depths.count else {
            throw ConvNeXtV2Error.invalid("depths must have num_stages = \(stages) entries, not \(depths.count)")
        }
        let activation = try fields.text("hidden_act") ?? "gelu"
        guard let hiddenAct = Activation(rawValue: activation) else {
            let known = Activation.allCases.map(\.rawValue).joined(separator: ", ")
            throw ConvNeXtV2Error.invalid("hidden_act must be one of \(known), not \(short(activation))")
        }
        try self.init(
            numChannels: fields.whole("num_channels", in: channels) ?? 3,
            patchSize: Self.patchSize(fields),
            hiddenSizes: fields.wholes("hidden_sizes", in: channels) ?? Size.tiny.hiddenSizes,
            depths: depths, hiddenAct: hiddenAct, layerNormEps: Float(fields.decimal("layer_norm_eps") ?? 1e-12),
            outFeatures: Self.outFeatures(fields, stages: depths.count), labels: ClassLabels.read(fields),
            quantization: fields.given("quantization").map(ConvNeXtV2Quantization.init(value:)))
    }

    private static func patchSize(_ fields: [String: JSONValue]) throws -> PatchSize {
        guard let value = fields.given("patch_size") else { return PatchSize(height: 4, width: 4) }
        let sides = (value.list ?? [value]).compactMap(\.whole)
        guard let height = sides.first, let width = sides.last, sides.count <= 2,
            sides.count == (value.list?.count ?? 1)
        else { throw ConvNeXtV2Error.invalid("patch_size must be a whole number or a pair (height, width)") }
        return PatchSize(height: height, width: width)
    }

    private static func outFeatures(_ fields: [String: JSONValue], stages: Int) throws -> [String]? {
        let names = stageNames(stages)
        let indices = try fields.wholes("out_indices", in: -names.count...names.count - 1)
        let fromIndices = indices?.map { names[$0 < 0 ? $0 + names.count : $0] }
        guard let value = fields.given("out_features") else { return fromIndices }
        guard let list = value.list?.map(\.text), !list.contains(nil) else {
            throw ConvNeXtV2Error.invalid("out_features must be a list of stages")
        }
        let given = list.compactMap { $0 }
        if let fromIndices, fromIndices != given {
            throw ConvNeXtV2Error.invalid("out_features and out_indices name different stages: give one of them")
        }
        return given
    }

    private static func stageNames(_ count: Int) -> [String] { ["stem"] + (1...count).map { "stage\($0)" } }

    private static func require(_ holds: Bool, _ sentence: String) throws {
        if !holds { throw ConvNeXtV2Error.invalid(sentence) }
    }
}
