/// The `quantization` entry of a config.json: what all quantized layers share, and a layer's own group size.
public struct ConvNeXtV2Quantization: Equatable, Sendable {
    /// MLX's modes.
    public enum Mode: String, CaseIterable, Sendable {
        case affine, mxfp4, mxfp8, nvfp4

        var bits: [Int] {
            switch self {
            case .affine: [2, 3, 4, 5, 6, 8]
            case .mxfp4, .nvfp4: [4]
            case .mxfp8: [8]
            }
        }

        var groupSizes: [Int] {
            switch self {
            case .affine: [32, 64, 128]
            case .mxfp4, .mxfp8: [32]
            case .nvfp4: [16]
            }
        }
    }

    public let mode: Mode
    public let bits: Int
    public let groupSize: Int
    /// The group size of the layers, by path, that have one of their own.
    public let ownGroupSizes: [String: Int]

    /// - Throws: ``ConvNeXtV2Error/invalid(_:)`` where the mode does not offer these bits or a group size.
    public init(mode: Mode = .affine, bits: Int, groupSize: Int, ownGroupSizes: [String: Int] = [:]) throws {
        guard mode.bits.contains(bits) else {
            throw ConvNeXtV2Error.invalid("quantization: the mode \(mode.rawValue) has no \(bits) bits")
        }
        for size in [groupSize] + ownGroupSizes.values where !mode.groupSizes.contains(size) {
            throw ConvNeXtV2Error.invalid("quantization: the mode \(mode.rawValue) has no groups of \(size)")
        }
        self.mode = mode
        self.bits = bits
        self.groupSize = groupSize
        self.ownGroupSizes = ownGroupSizes
    }

    init(value: JSONValue) throws {
        guard let fields = value.fields, let bits = try fields.whole("bits", in: 1...8),
            let groupSize = try fields.whole("group_size", in: 1...1024),
            let mode = Mode(rawValue: try fields.text("mode") ?? "affine")
        else {
            throw ConvNeXtV2Error.invalid("config.json has no valid \"quantization\" entry: convert the model again")
        }
        let own = try fields.compactMapValues { try $0.fields?.whole("group_size", in: 1...1024) }
        try self.init(mode: mode, bits: bits, groupSize: groupSize, ownGroupSizes: own)
    }

    /// The group size of a layer, of which `inputs` values make a row.
    ///
    /// - Throws: ``ConvNeXtV2Error/invalid(_:)`` where it does not divide them: MLX would stop the process.
    public func groupSize(of path: String, inputs: Int) throws -> Int {
        let size = ownGroupSizes[path] ?? groupSize
        guard inputs % size == 0, inputs * bits % 32 == 0 else {
            throw ConvNeXtV2Error.invalid("groups of \(size) do not divide the \(inputs) inputs of \(short(path))")
        }
        return size
    }
}
