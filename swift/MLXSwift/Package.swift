// swift-tools-version: 5.9
import PackageDescription

// The graph through mlx-swift, which brings its own MLX: no libconvnextv2, only its resizing. See ../README.md.
let package = Package(
    name: "MLXClassifier",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [.library(name: "MLXClassifier", targets: ["MLXClassifier"])],
    dependencies: [
        .package(name: "ConvNeXtV2", path: "../.."),
        // This release holds MLX 0.32.2, which graphs have to be exported with: MLXClassifier.mlxVersion.
        .package(url: "https://github.com/ml-explore/mlx-swift", exact: "0.32.3"),
    ],
    targets: [
        .target(
            name: "MLXClassifier",
            dependencies: [
                .product(name: "ExportedModel", package: "ConvNeXtV2"), .product(name: "MLX", package: "mlx-swift"),
            ]),
        .executableTarget(name: "mlx-classify", dependencies: ["MLXClassifier"]),
    ]
)
