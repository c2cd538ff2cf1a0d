import Foundation

/// A tensor of a file, not read: its dtype as safetensors names it, and its shape.
public struct StoredTensor: Equatable, Sendable {
    public let dtype: String
    public let shape: [Int]

    public init(dtype: String, shape: [Int]) {
        self.dtype = dtype
        self.shape = shape
    }

    /// Whether it is one of the three types that a model computes in.
    public var isFloating: Bool { ["F32", "F16", "BF16"].contains(dtype) }
}

/// The header of a safetensors file (https://github.com/huggingface/safetensors, "Format").
///
/// It is checked whole, against the file's length too: MLX would read past the end of a file that is cut short.
public struct SafetensorsFile: Sendable {
    public let url: URL
    /// "mlx" or "pt": the layout that the file states.
    public let format: String
    public let tensors: [String: StoredTensor]

    // huge has 40 kB
    private static let mostHeaderBytes = 2_000_000
    private static let bytes = [
        "F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U16": 2,
        "F64": 8, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    ]

    /// - Throws: ``ConvNeXtV2Error`` where the file is missing, truncated or corrupt.
    public init(contentsOf url: URL) throws {
        guard let file = try? FileHandle(forReadingFrom: url) else {
            throw ConvNeXtV2Error.notFound("there is no \(url.path), or it may not be read")
        }
        defer { try? file.close() }
        let corrupt = ConvNeXtV2Error.unreadable("\(url.path) is truncated or corrupt: download it again")
        guard let length = try? file.seekToEnd(), (try? file.seek(toOffset: 0)) != nil,
            let start = try? file.read(upToCount: 8), start.count == 8
        else { throw corrupt }
        let headerBytes = start.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard headerBytes <= Self.mostHeaderBytes, headerBytes + 8 <= length,
            let text = try? file.read(upToCount: Int(headerBytes)), text.count == Int(headerBytes),
            let entries = try? JSONValue.object(from: text, name: url.path)
        else { throw corrupt }
        let room = Int(length) - 8 - Int(headerBytes)
        var tensors: [String: StoredTensor] = [:]
        var ranges: [Range<Int>] = []
        for (name, entry) in entries where name != "__metadata__" {
            guard let fields = entry.fields, let (tensor, range) = Self.tensor(fields), range.upperBound <= room else {
                throw corrupt
            }
            tensors[name] = tensor
            ranges.append(range)
        }
        ranges.sort { ($0.lowerBound, $0.upperBound) < ($1.lowerBound, $1.upperBound) }
        for (one, next) in zip(ranges, ranges.dropFirst()) where one.upperBound > next.lowerBound { throw corrupt }
        self.url = url
        self.format = entries["__metadata__"]?.fields?["format"]?.text ?? "pt"
        self.tensors = tensors
    }

    private static func tensor(_ fields: [String: JSONValue]) -> (StoredTensor, Range<Int>)? {
        guard let dtype = fields["dtype"]?.text, let size = bytes[dtype],
            let shape = fields["shape"]?.list?.compactMap(\.whole), shape.count == fields["shape"]?.list?.count,
            let offsets = fields["data_offsets"]?.list?.compactMap(\.whole), offsets.count == 2,
            offsets[0] >= 0, offsets[0] <= offsets[1]
        else { return nil }
        var count = size
        for side in shape {
            let (product, overflow) = count.multipliedReportingOverflow(by: side)
            guard side >= 0, !overflow else { return nil }
            count = product
        }
        guard count == offsets[1] - offsets[0] else { return nil }
        return (StoredTensor(dtype: dtype, shape: shape), offsets[0]..<offsets[1])
    }
}
